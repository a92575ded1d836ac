"""Answers to questions about videos: NExT-QA multiple choice, and one-word answers of MSVD-QA and MSRVTT-QA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from emu.eval.metrics.metric import (
    WHOLE,
    Bootstrap,
    Key,
    Score,
    aligned_keys,
    grouped_means,
    mean_score,
    require,
    shown,
)

NEXTQA_TYPES = ("CW", "CH", "TN", "TP", "TC", "DB", "DC", "DL", "DO")


@dataclass(frozen=True)
class ChoiceReference:
    """The number of the right option and the type of the question (CW, CH, TN, TP, TC, DC, DL, DO)."""

    answer: int
    question_type: str


@dataclass(frozen=True)
class NextQaChoice:
    """The share of right options, in percent, by type: C causal, T temporal, D descriptive, and the finer ones.

    As in the official scorer, "previous" questions (TP) count as "next" ones (TN).
    """

    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, int], references: Mapping[Key, ChoiceReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        keys = aligned_keys(predictions, references)
        require(predictions, WHOLE, "predictions")
        require({key: references[key].answer for key in keys}, WHOLE, "references")
        types = nextqa_types(keys, [references[key].question_type for key in keys])
        samples = {key: float(predictions[key] == references[key].answer) for key in keys}
        groups = nextqa_groups(samples.values(), types)
        return mean_score("NExT-QA accuracy", samples, self.bootstrap, groups, scale=100)


@dataclass(frozen=True)
class WordReference:
    """The answer, and the question where its first word is to group the scores."""

    answer: str
    question: str | None = None


@dataclass(frozen=True)
class WordAccuracy:
    """The share of answers that are the reference, in percent: top-1 accuracy of MSVD-QA and MSRVTT-QA.

    "exact" compares in lower case without outer white space and a final period: the datasets' answers are single
    words in lower case, compared as classes by their authors. Groups are the question words of the datasets'
    paper: what, who, how, when, where; the rest is "other".
    """

    normalization: Literal["exact", "vqa"] = "exact"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.normalization not in ("exact", "vqa"):
            raise ValueError(f"normalization is {self.normalization!r}; there are exact and vqa")

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
        """The answer as it is compared."""
        from emu.eval.metrics.vqa_answers import normalized

        if self.normalization == "vqa":
            return normalized(answer)
        return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def nextqa_types(keys: Iterable[Key], types: Iterable[str]) -> list[str]:
    """The types with TP counted as TN; raises ValueError with the first few that do not exist."""
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
    """Means in percent of the three groups C, T, D and of the types."""
    values = list(samples)
    return grouped_means(values, [kind[0] for kind in types], 100) | grouped_means(
        values, types, 100
    )


def _question_word(question: str) -> str:
    first = question.lower().split()[:1]
    return first[0] if first and first[0] in ("what", "who", "how", "when", "where") else "other"
