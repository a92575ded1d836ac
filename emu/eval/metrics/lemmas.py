"""Lemmas of the words of an answer, for WUPS: by NLTK's part-of-speech tagger, or by rules that need only WordNet.

Tags are the Penn Treebank's (Marcus et al., 1993). The official scorer uses NLTK's averaged perceptron tagger, which
needs trained data (`nltk_lemmas`). The rules (`rule_lemmas`) have a list of tags for closed classes such as articles
and pronouns. Any other word gets the part of speech in which most of its senses occur in WordNet's tagged texts,
weighted by the word before it and by its ending. The scores differ in the third digit (docs/metrics.md has both).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

from emu.eval.metrics.answers import stem
from emu.eval.metrics.wordnet import WordNet

Lemmatize = Callable[[str], list[str]]
Split = Callable[[str], Sequence[str]]
Tag = Callable[[Sequence[str]], Sequence[str]]
# A word with its inner hyphens and apostrophes, or one punctuation character.
_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
_WORDNET_POS = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}
_CLOSED_CLASSES: dict[str, str] = {
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
# Weights of a word's parts of speech after a word with this tag.
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
# Ending, tag, weight: words with these endings are verbs more often than their numbers of senses suggest.
_ENDINGS = (("ing", "VBG", 20.0), ("ed", "VBD", 5.0))
# The count of a sense that occurs in no tagged text.
_UNSEEN = 0.1


def split_words(answer: str) -> list[str]:
    """The words and punctuation characters of an answer; inner hyphens and apostrophes are kept."""
    return _WORD.findall(answer)


def tagged_lemmas(wordnet: WordNet, tag: Tag, split: Split = split_words) -> Lemmatize:
    """Lemmas of the official scorer (pywsd's), given the tag of each word in its answer.

    A word whose tag is not a noun, verb, adjective or adverb is tagged on its own, and counts as a noun if that does
    not help. If WordNet does not know the lemma, the stem is used; if it does not know the stem, the word.
    """
    lemma = lru_cache(maxsize=None)(partial(_lemma, wordnet, tag))
    return partial(_tagged_lemmas, lemma, tag, split)


def rule_lemmas(wordnet: WordNet) -> Lemmatize:
    """`tagged_lemmas` with the tags of `rule_tags`, which needs only WordNet."""
    return tagged_lemmas(wordnet, rule_tags(wordnet))


def nltk_lemmas(wordnet: WordNet) -> Lemmatize:
    """`tagged_lemmas` with NLTK's word tokenizer and averaged perceptron tagger.

    Raises FileNotFoundError without the data of the tagger, with a hint.
    """
    import nltk

    try:
        nltk.pos_tag(["word"])
    except LookupError as error:
        raise FileNotFoundError(
            "NLTK finds no data of its averaged perceptron tagger, which the official lemmas need; download it with "
            "python -m nltk.downloader averaged_perceptron_tagger_eng, or use --tagger rules, whose scores differ "
            "slightly (docs/metrics.md)"
        ) from error
    return tagged_lemmas(
        wordnet,
        lambda words: [tag for _, tag in nltk.pos_tag(list(words))],
        # an answer is one sentence, so the data for splitting sentences is not needed
        nltk.tokenize.NLTKWordTokenizer().tokenize,
    )


def nltk_folders() -> list[str]:
    """The folders where NLTK looks for data."""
    import nltk

    return list(nltk.data.path)


def _tagged_lemmas(
    lemma: Callable[[str, str], str], tag: Tag, split: Split, answer: str
) -> list[str]:
    words = split(answer)
    return [lemma(word.lower(), found) for word, found in zip(words, tag(words), strict=True)]


def _lemma(wordnet: WordNet, tag: Tag, word: str, found: str) -> str:
    pos = _WORDNET_POS.get(found[:2]) or _WORDNET_POS.get(tag([word])[0][:2], "n")
    lemma = min(wordnet.base_forms(word, pos), key=len, default=word)
    if wordnet.first_sense(lemma) is not None:
        return lemma
    stemmed = stem(word)
    return stemmed if wordnet.first_sense(stemmed) is not None else word


def rule_tags(wordnet: WordNet) -> Callable[[Sequence[str]], list[str]]:
    """A tagger by rules: from the words of an answer to a tag for each."""
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
    if word in _CLOSED_CLASSES:
        return _CLOSED_CLASSES[word]
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
    """How common the word is in each part of speech: the count of occurring senses of its most common base form."""
    found: dict[str, float] = {}
    for pos in _TAGS:
        forms = wordnet.base_forms(word, pos)
        if forms:
            senses = [wordnet.num_senses(form, pos) for form in forms]
            found[pos] = max(occurring + _UNSEEN * total for total, occurring in senses)
    return found
