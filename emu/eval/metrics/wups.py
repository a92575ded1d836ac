"""WUPS of open-ended answers (NExT-OE): how similar the words of two answers are in WordNet.

The official scorer lemmatises both answers, drops stop words, and takes products of the best Wu-Palmer
similarities (Malinowski and Fritz, 2014); counts and yes/no answers must be equal instead. Its lemmas depend on a
tagger of parts of speech: `nltk_lemmas` has the official words, tags and lemmas, `rule_lemmas` tags by rules, needs
no tagger's data, and gives scores that differ in the third digit (docs/metrics.md has both).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from emu.eval.metrics.metric import Bootstrap, Key, Score, aligned_keys, mean_score, require
from emu.eval.metrics.optional import optional_module
from emu.eval.metrics.porter import stem
from emu.eval.metrics.rule_tags import rule_tags
from emu.eval.metrics.video_qa import nextqa_groups, nextqa_types
from emu.eval.metrics.wordnet import RootRule, Sense, WordNet

Lemmatize = Callable[[str], list[str]]
Split = Callable[[str], Sequence[str]]
Tag = Callable[[Sequence[str]], Sequence[str]]
# A word with the hyphens and apostrophes inside it, or one other sign.
_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
# Counts and yes/no answers are right or wrong.
_EXACT_TYPES = ("DB", "DC")
_WORDNET_POS = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}


@dataclass(frozen=True)
class OpenReference:
    """The answers that are right, and the type of the question (CW, CH, TN, TP, TC, DB, DC, DL, DO)."""

    answers: Sequence[str]
    question_type: str


@dataclass(frozen=True)
class Wups:
    """WUPS in percent, by type: C causal, T temporal, D descriptive, and the finer ones (TPN: TN and TP).

    Similarities below `threshold` count a tenth (0 and 0.9 are in use).
    """

    wordnet: WordNet
    lemmatize: Lemmatize
    stop_words: Collection[str] = ()
    threshold: float = 0.0
    rule: RootRule = "nltk-3.3"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    _similarities: dict[str, dict[str, float]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _senses: dict[str, Sense | None] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, OpenReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        keys = aligned_keys(predictions, references)
        require(predictions, str, "predictions")
        types = nextqa_types(keys, [references[key].question_type for key in keys])
        answers = {(key, i): text for key in keys for i, text in enumerate(references[key].answers)}
        require(answers, str, "references")
        texts = {*answers.values(), *predictions.values()}
        words = {text: self.words(text) for text in texts}
        samples = {
            key: max(
                (
                    self._sample(words[predictions[key]], words[answer], kind)
                    for answer in references[key].answers
                ),
                default=0.0,
            )
            for key, kind in zip(keys, types, strict=True)
        }
        groups = nextqa_groups(
            samples.values(), ["TPN" if kind == "TN" else kind for kind in types]
        )
        return mean_score("WUPS", samples, self.bootstrap, groups, scale=100)

    def words(self, answer: str) -> list[str]:
        """The lemmas of an answer without stop words."""
        return [word for word in self.lemmatize(answer) if word not in self.stop_words]

    def answer_similarity(self, first: Sequence[str], second: Sequence[str]) -> float:
        """The smaller of the two directions' products."""
        return min(self._product(first, second), self._product(second, first))

    def _sample(self, prediction: list[str], answer: list[str], kind: str) -> float:
        if kind in _EXACT_TYPES:
            return float(prediction == answer)
        return self.answer_similarity(prediction, answer)

    def _product(self, first: Sequence[str], second: Sequence[str]) -> float:
        """The product over `first` of the best similarity to `second`; words similar to none are left out."""
        product, found = 1.0, False
        for word in first:
            if word in second:
                found = True
                continue
            known = self._similarities.get(word)
            if known is None:
                known = self._similarities[word] = {}
            best = 0.0
            for other in second:
                value = known.get(other)
                if value is None:
                    value = known[other] = self._word_similarity(word, other)
                if value > best:
                    best = value
            if best > 0:
                product, found = product * best, True
        return product if found else 0.0

    def _word_similarity(self, first: str, second: str) -> float:
        senses = self._senses
        for word in (first, second):
            if word not in senses:
                senses[word] = self.wordnet.first_sense(word)
        ours, theirs = senses[first], senses[second]
        if ours is None or theirs is None:
            return 0.0
        value = self.wordnet.similarity(ours, theirs, self.rule) or 0.0
        return value if value >= self.threshold else 0.1 * value


def plain_words(answer: str) -> list[str]:
    """The words of an answer and its signs, each by itself; hyphens and apostrophes stay inside their words."""
    return _WORD.findall(answer)


def tagged_lemmas(wordnet: WordNet, tag: Tag, split: Split = plain_words) -> Lemmatize:
    """Lemmas as the official scorer has them (pywsd's): by the tag of each word in its answer.

    A word without a noun's, verb's, adjective's or adverb's tag is tagged alone, and is a noun if that gives none;
    a lemma that WordNet does not know gives way to the stem, and an unknown stem to the word.
    """
    lemma = lru_cache(maxsize=None)(partial(_lemma, wordnet, tag))
    return partial(_tagged_lemmas, lemma, tag, split)


def rule_lemmas(wordnet: WordNet) -> Lemmatize:
    """`tagged_lemmas` by the tags of `rule_tags`, which needs WordNet alone."""
    return tagged_lemmas(wordnet, rule_tags(wordnet))


def nltk_lemmas(wordnet: WordNet) -> Lemmatize:
    """`tagged_lemmas` by NLTK's words and its averaged perceptron tagger.

    Raises ModuleNotFoundError without NLTK and FileNotFoundError without its tagger's data, each with what to do.
    """
    nltk = optional_module("nltk", "wordnet", "tags of words need")
    try:
        nltk.pos_tag(["word"])
    except LookupError as error:
        raise FileNotFoundError(
            "NLTK finds no data of its averaged perceptron tagger, which gives the official lemmas: "
            "python -m nltk.downloader averaged_perceptron_tagger_eng fetches it; --tagger rules scores without it, a "
            "little differently (docs/metrics.md)"
        ) from error
    return tagged_lemmas(
        wordnet,
        lambda words: [tag for _, tag in nltk.pos_tag(list(words))],
        # an answer is one sentence, so the data that finds sentences is not needed
        nltk.tokenize.NLTKWordTokenizer().tokenize,
    )


def nltk_folders() -> list[str]:
    """Where NLTK looks for data; nowhere without NLTK."""
    try:
        return list(optional_module("nltk", "wordnet", "its folders need").data.path)
    except ModuleNotFoundError:
        return []


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
