"""WUPS of open-ended answers (NExT-OE): similarity in WordNet of the words of two answers.

The official scorer lemmatizes both answers, drops stop words, and multiplies the best Wu-Palmer similarities of the
words (Malinowski and Fritz, 2014). Counts and yes/no answers must be equal instead. Lemmas come from one of the two
taggers of `lemmas`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from emu.eval.metrics.files import ScoreFiles, predicted_values, value_of, values_by_id
from emu.eval.metrics.lemmas import Lemmatize, nltk_folders, nltk_lemmas, rule_lemmas
from emu.eval.metrics.metric import Bootstrap, Key, Score, aligned_keys, mean_score, require
from emu.eval.metrics.video_qa import nextqa_groups, nextqa_types
from emu.eval.metrics.wordnet import RootRule, Sense, WordNet, find_wordnet, load_wordnet

# Yes/no answers and counts are compared for equality.
_EXACT_TYPES = ("DB", "DC")


@dataclass(frozen=True)
class WupsFiles(ScoreFiles):
    """The open-ended answer to each question, by video and question, and the questions with their answer and type."""

    wordnet: Path | None = None
    """Folder or .zip file of WordNet 3.0's database files. None: those of Debian's package or NLTK's downloader."""
    stop_words: Path | None = None
    """File with one stop word per line (required). Published scores use stopwords.txt of the benchmark's authors."""
    tagger: Literal["nltk", "rules"] = "nltk"
    """nltk: the official lemmas; needs the data of NLTK's tagger.
    rules: needs no data; its scores differ slightly."""
    root_rule: RootRule = "nltk-3.3"
    """The NLTK version whose Wu-Palmer similarity is used; published scores use 3.3."""

    predictions_example: ClassVar[str] = '{"10": {"0": "dogs", "1": "the cat"}}'
    references_example: ClassVar[str] = "video,qid,answer,type\n10,0,the dog,CW\n10,1,cat,TP\n"

    def inputs(self) -> list[Path]:
        """The files that are read, the stop words included."""
        return [*super().inputs(), *([self.stop_words] if self.stop_words else [])]

    def scores(self, metric: str) -> list[Score]:
        """One score."""
        del metric
        if self.stop_words is None:
            raise ValueError(
                "nextoe needs --stop-words FILE; published scores use stopwords.txt of the benchmark's authors, an "
                "empty file keeps every word"
            )
        wordnet = load_wordnet(self.wordnet or find_wordnet(nltk_folders()))
        lemmatize = nltk_lemmas(wordnet) if self.tagger == "nltk" else rule_lemmas(wordnet)
        stop_words = frozenset(self.stop_words.read_text(encoding="utf-8").split())
        wups = Wups(wordnet, lemmatize, stop_words, rule=self.root_rule, bootstrap=self.bootstrap)
        predictions = predicted_values(self.predictions, "prediction", "answer")
        return [wups(predictions, open_references(self.references))]


@dataclass(frozen=True)
class OpenReference:
    """The correct answers, and the type of the question (CW, CH, TN, TP, TC, DB, DC, DL, DO)."""

    answers: Sequence[str]
    question_type: str


@dataclass(frozen=True)
class Wups:
    """WUPS in percent, also by type: C causal, T temporal, D descriptive, and their subtypes (TPN is TN and TP).

    Similarities below `threshold` (commonly 0 or 0.9) are multiplied by 0.1.
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
        """The smaller of the products in both directions."""
        return min(self._product(first, second), self._product(second, first))

    def _sample(self, prediction: list[str], answer: list[str], kind: str) -> float:
        if kind in _EXACT_TYPES:
            return float(prediction == answer)
        return self.answer_similarity(prediction, answer)

    def _product(self, first: Sequence[str], second: Sequence[str]) -> float:
        """Product over `first` of the best similarity to a word of `second`; words similar to none are skipped."""
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


def open_references(path: Path) -> dict[str, OpenReference]:
    """The answer and the type of each open-ended question."""
    return values_by_id(
        path,
        lambda record: OpenReference(
            [value_of(record, path, "answer")], value_of(record, path, "type", "question_type")
        ),
    )
