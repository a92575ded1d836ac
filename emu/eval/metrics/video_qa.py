"""Accuracy of answers about videos: multiple choice (NExT-QA) and one-word answers (MSVD-QA, MSRVTT-QA)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from emu.eval.metrics.answers import normalized
from emu.eval.metrics.files import (
    Record,
    ScoreFiles,
    integer,
    predicted_values,
    record_id,
    value_of,
    values_by_id,
)
from emu.eval.metrics.metric import (
    INTEGER_TYPES,
    Bootstrap,
    Key,
    Score,
    aligned_keys,
    grouped_means,
    mean_score,
    require,
    shown,
)
from schemas.validation import Checked

NEXTQA_TYPES = ("CW", "CH", "TN", "TP", "TC", "DB", "DC", "DL", "DO")


@dataclass(frozen=True)
class ChoiceFiles(ScoreFiles):
    """The chosen option of each question, and the questions with their correct option and type."""

    predictions_example: ClassVar[str] = '{"10_0": {"prediction": 2}, "10_1": {"prediction": 0}}'
    references_example: ClassVar[str] = "video,qid,answer,type\n10,0,2,CW\n10,1,0,TP\n"

    def scores(self, metric: str) -> list[Score]:
        """One score."""
        del metric
        predictions = {
            key: integer(value, f"{self.predictions}: the prediction of {key!r}")
            for key, value in predicted_values(self.predictions, "prediction", "answer").items()
        }
        return [NextQaChoice(self.bootstrap)(predictions, choice_references(self.references))]


@dataclass(frozen=True)
class WordFiles(ScoreFiles):
    """One-word answers; the first word of "question", which is optional, groups the scores."""

    predictions_example: ClassVar[str] = '{"1": "dog", "2": "two"}'
    references_example: ClassVar[str] = (
        '[{"id": 1, "answer": "dog", "question": "what runs?"}, {"id": 2, "answer": "two"}]'
    )

    def scores(self, metric: str) -> list[Score]:
        """One score."""
        del metric
        # in this order: a file of predictions may repeat the correct answer beside each
        predictions = predicted_values(self.predictions, "prediction", "answer")
        return [
            WordAccuracy(bootstrap=self.bootstrap)(predictions, word_references(self.references))
        ]


@dataclass(frozen=True)
class ChoiceReference:
    """The index of the correct option and the type of the question (CW, CH, TN, TP, TC, DC, DL, DO)."""

    answer: int
    question_type: str


@dataclass(frozen=True)
class NextQaChoice:
    """Percentage of correct options, also by type: C causal, T temporal, D descriptive, and their subtypes.

    As in the official scorer, "previous" questions (TP) count as "next" questions (TN).
    """

    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, int], references: Mapping[Key, ChoiceReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        keys = aligned_keys(predictions, references)
        require(predictions, INTEGER_TYPES, "predictions")
        require({key: references[key].answer for key in keys}, INTEGER_TYPES, "references")
        types = nextqa_types(keys, [references[key].question_type for key in keys])
        samples = {key: float(predictions[key] == references[key].answer) for key in keys}
        groups = nextqa_groups(samples.values(), types)
        return mean_score("NExT-QA accuracy", samples, self.bootstrap, groups, scale=100)


@dataclass(frozen=True)
class WordReference:
    """The answer, and the question if its first word is to group the scores."""

    answer: str
    question: str | None = None


@dataclass(frozen=True)
class WordAccuracy(Checked):
    """Percentage of answers that equal the reference: top-1 accuracy of MSVD-QA and MSRVTT-QA.

    "exact" compares in lower case without surrounding white space and a final period: the answers of the datasets are
    single words in lower case, which their authors compare as classes. "vqa" normalizes as the VQA scorer does. Groups
    are the question words of the datasets' paper (what, who, how, when, where) and "other".
    """

    normalization: Literal["exact", "vqa"] = "exact"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, WordReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        keys = aligned_keys(predictions, references)
        require(predictions, str, "predictions")
        require({key: reference.answer for key, reference in references.items()}, str, "references")
        samples = {
            key: float(self.normalized(predictions[key]) == self.normalized(references[key].answer))
            for key in keys
        }
        questions = {
            key: reference.question
            for key, reference in references.items()
            if reference.question is not None
        }
        require(questions, str, "questions")
        words = [_question_word(question) for question in questions.values()]
        groups = grouped_means([samples[key] for key in questions], words, 100)
        return mean_score("top-1 accuracy", samples, self.bootstrap, groups, scale=100)

    def normalized(self, answer: str) -> str:
        """The answer in the form that is compared."""
        if self.normalization == "vqa":
            return normalized(answer)
        return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def choice_references(path: Path) -> dict[str, ChoiceReference]:
    """The correct option and the type of each multiple-choice question."""

    def reference(record: Record) -> ChoiceReference:
        answer = integer(
            value_of(record, path, "answer"), f"{path}: the answer of {record_id(record, path)!r}"
        )
        return ChoiceReference(answer, value_of(record, path, "type", "question_type"))

    return values_by_id(path, reference)


def word_references(path: Path) -> dict[str, WordReference]:
    """The one-word answer of each question."""
    return values_by_id(
        path,
        lambda record: WordReference(value_of(record, path, "answer"), record.get("question")),
    )


def nextqa_types(keys: Iterable[Key], types: Iterable[str]) -> list[str]:
    """The types, with TN for TP; raises ValueError with the first few unknown ones."""
    found = list(types)
    unknown = [
        f"{key}: {kind}" for key, kind in zip(keys, found, strict=True) if kind not in NEXTQA_TYPES
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} question types are none of {', '.join(NEXTQA_TYPES)}: {shown(unknown)}"
        )
    return ["TN" if kind == "TP" else kind for kind in found]


def nextqa_groups(samples: Iterable[float], types: list[str]) -> dict[str, float]:
    """Means in percent of the groups C, T and D and of the types."""
    values = list(samples)
    return grouped_means(values, [kind[0] for kind in types], 100) | grouped_means(
        values, types, 100
    )


def _question_word(question: str) -> str:
    first = question.lower().split()[:1]
    return first[0] if first and first[0] in ("what", "who", "how", "when", "where") else "other"
