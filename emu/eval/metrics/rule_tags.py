"""Parts of speech of the words of an answer by rules, where no trained tagger is at hand.

The tags are the Penn Treebank's (Marcus et al., 1993). Words that WordNet does not hold, such as articles and pronouns,
have their tags in a list; the others have one of the parts of speech that WordNet gives them: the one in
which more of its senses occur in WordNet's tagged texts, unless the word before or the ending of the word speaks
for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

from emu.eval.metrics.wordnet import WordNet

_CLOSED: dict[str, str] = {
    word: tag
    for tag, words in {
        "DT": "a all an another any both each every no some that the these this those",
        "PRP": "he her hers herself him himself his i it its itself me my our ours she their theirs them themselves "
        "they us we you your yours",
        "IN": "about across after against along among around as at because before behind below beneath beside between "
        "by down during for from if in inside into like near of off on onto out outside over past since so through "
        "towards toward under until up upon while with within without",
        "CC": "and but nor or",
        "MD": "can could may might must shall should will would",
        "VB": "be do have",
        "VBD": "did had was were",
        "VBP": "am are",
        "VBZ": "does has is",
        "CD": "zero one two three four five six seven eight nine ten eleven twelve",
        "RB": "not n't",
        "TO": "to",
        "EX": "there",
    }.items()
    for word in words.split()
}
_TAGS = {"n": "NN", "v": "VB", "a": "JJ", "r": "RB"}
# How much a word's part of speech gains or loses by the tag before it.
_AFTER: Mapping[str, Mapping[str, float]] = {
    "": {"v": 2},
    "DT": {"n": 3, "a": 1.2, "v": 0.02},
    "TO": {"v": 10, "n": 0.3},
    "MD": {"v": 10, "n": 0.3},
    "IN": {"n": 2, "v": 0.2},
    "PRP": {"v": 4, "n": 0.5},
    "JJ": {"n": 4, "v": 0.2},
    "CD": {"n": 4, "v": 0.2},
    "VB": {"v": 0.3},
}
_POSSESSIVES = frozenset(("her", "his", "its", "my", "our", "their", "your"))
# A verb's form with this ending is a verb more often than its senses as a noun or an adjective say.
_ENDINGS = (("ing", "VBG", 20.0), ("ed", "VBD", 5.0))
# What a sense counts that occurs in no tagged text.
_UNSEEN = 0.1


def rule_tags(wordnet: WordNet) -> Callable[[Sequence[str]], list[str]]:
    """A tagger: the words of an answer in, a tag for each out."""
    counts = lru_cache(maxsize=None)(partial(_counts, wordnet))
    tag_after = lru_cache(maxsize=None)(partial(_tag, counts))

    def tag(words: Sequence[str]) -> list[str]:
        tags: list[str] = []
        context = ""
        for word in words:
            lower = word.lower()
            tags.append(tag_after(lower, context))
            context = "DT" if lower in _POSSESSIVES else tags[-1]
        return tags

    return tag


def _tag(counts: Callable[[str], Mapping[str, float]], word: str, context: str) -> str:
    if word in _CLOSED:
        return _CLOSED[word]
    if word.isdigit():
        return "CD"
    found = counts(word)
    if not found:
        return "NN"
    weights = _AFTER.get("VB" if context.startswith("VB") else context, {})
    ending = next((one for one in _ENDINGS if word.endswith(one[0])), None)
    scores = {pos: count * weights.get(pos, 1) for pos, count in found.items()}
    if ending and "v" in scores:
        scores["v"] *= ending[2]
    best = max(scores, key=lambda pos: scores[pos])
    return ending[1] if ending and best == "v" else _TAGS[best]


def _counts(wordnet: WordNet, word: str) -> dict[str, float]:
    """How common the word is in each part of speech: of its base forms, the one with most senses that occur."""
    found: dict[str, float] = {}
    for pos in _TAGS:
        forms = wordnet.base_forms(word, pos)
        if forms:
            senses = [wordnet.num_senses(form, pos) for form in forms]
            found[pos] = max(occurring + _UNSEEN * total for total, occurring in senses)
    return found
