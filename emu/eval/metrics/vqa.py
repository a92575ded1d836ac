"""Accuracy of answers to visual questions by agreement with annotators: VQAv2, OKVQA, VizWiz, TextVQA."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from emu.eval.metrics.answers import (
    normalized,
    normalized_words,
    single_line,
    stem,
    textvqa_normalized,
    without_punctuation,
)
from emu.eval.metrics.files import (
    Record,
    ScoreFiles,
    predicted_values,
    record_id,
    sequence,
    value_of,
    values_by_id,
)
from emu.eval.metrics.metric import (
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

Mode = Literal["official", "always_normalized", "released", "textvqa"]
# An answer is fully correct if this many other annotators gave it.
_NUM_AGREEING = 3
# A prediction and the references, as they are compared.
Normalized = tuple[str, list[str]]


@dataclass(frozen=True)
class VqaFiles(ScoreFiles):
    """Answers to visual questions: VQA results and annotations, or the same fields as JSON lines or CSV."""

    predictions_example: ClassVar[str] = (
        '[{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": "2"}]'
    )
    references_example: ClassVar[str] = (
        '{"annotations": [{"question_id": 1, "answers": [{"answer": "red", "answer_id": 1}, '
        '{"answer": "Red", "answer_id": 2}]}, {"question_id": 2, "answers": [{"answer": "two", "answer_id": 1}, '
        '{"answer": "2", "answer_id": 2}]}]}'
    )

    def scores(self, metric: str) -> list[Score]:
        """One score."""
        metrics = {
            "vqa": VqaAccuracy("official", bootstrap=self.bootstrap),
            "vqa_always_normalized": VqaAccuracy("always_normalized", bootstrap=self.bootstrap),
            "vqa_released": VqaAccuracy("released", bootstrap=self.bootstrap),
            "okvqa": VqaAccuracy("released", stemmed=True, bootstrap=self.bootstrap),
            "textvqa": VqaAccuracy("textvqa", bootstrap=self.bootstrap),
        }
        predictions = predicted_values(self.predictions, "answer")
        return [metrics[metric](predictions, vqa_references(self.references))]


@dataclass(frozen=True)
class VqaReference:
    """The annotators' answers to a question.

    `annotators` distinguishes answers with the same text. The official scorer compares whole records: in VQAv2 they
    have a number, in VizWiz only a confidence, so that two equal answers with the same confidence count as one
    annotator's. None, and always in mode "textvqa": every answer is by another annotator.
    """

    answers: Sequence[str]
    annotators: Sequence[Hashable] | None = None
    question_type: str | None = None
    answer_type: str | None = None


@dataclass(frozen=True)
class VqaAccuracy(Checked):
    """Mean over annotators of min(1, number of other annotators that agree / 3), in percent.

    Modes:
        "official": VQAv2 and VizWiz; texts are normalized only if the annotators' answers differ.
        "always_normalized": as "official", with normalization in every case.
        "released": the evaluation released with Emu, for VQAv2 and OKVQA. The prediction is always normalized; the
            references lose only punctuation, and only if they differ. `stemmed` adds the stemmer of OKVQA.
        "textvqa": the evaluator of M4C.
    """

    mode: Mode = "official"
    stemmed: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stemmed and self.mode != "released":
            raise ValueError(f"stemmed needs mode 'released' (OKVQA); mode is {self.mode!r}")

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, VqaReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        keys = aligned_keys(predictions, references)
        require(predictions, str, "predictions")
        _check(references)
        samples = {key: self.accuracy(predictions[key], references[key]) for key in keys}
        groups: dict[str, float] = {}
        for kind in ("question_type", "answer_type"):
            typed = [(samples[key], getattr(references[key], kind)) for key in keys]
            known = [(value, f"{kind}/{group}") for value, group in typed if group is not None]
            groups |= grouped_means(
                [value for value, _ in known], [group for _, group in known], 100
            )
        name = (
            "VQA accuracy"
            if self.mode == "official"
            else f"VQA accuracy ({self.mode}{', stemmed' * self.stemmed})"
        )
        return mean_score(name, samples, self.bootstrap, groups, scale=100)

    def accuracy(self, prediction: str, reference: VqaReference) -> float:
        """The accuracy of one answer, from 0 to 1."""
        answer, answers = _NORMALIZERS[self.mode](prediction, reference.answers, self.stemmed)
        matches = answers.count(answer)
        if matches == 0:
            return 0.0
        annotators: Sequence[Hashable] = range(len(answers))
        # M4C's evaluator numbers the answers and ignores other fields
        if reference.annotators is not None and self.mode != "textvqa":
            annotators = reference.annotators
        same = Counter(
            annotator for text, annotator in zip(answers, annotators, strict=True) if text == answer
        )
        total = 0.0
        for text, annotator in zip(answers, annotators, strict=True):
            others = matches - (same[annotator] if text == answer else 0)
            total += min(1.0, others / _NUM_AGREEING)
        return total / len(answers)


def vqa_references(path: Path) -> dict[str, VqaReference]:
    """The annotators' answers to each question; all fields of an answer except its text identify the annotator.

    Raises ValueError if no question has more than one answer: every accuracy would be 0.
    """
    references = values_by_id(path, lambda record: _vqa_reference(record, path))
    if references and all(len(one.answers) == 1 for one in references.values()):
        raise ValueError(
            f"{path}: no question has more than one answer, and agreement of annotators needs several; for single "
            "answers use the metric msvdqa"
        )
    return references


def _vqa_reference(record: Record, path: Path) -> VqaReference:
    where = f"{path}: the answers of question {record_id(record, path)!r}"
    value: Any = value_of(record, path, "answers", "answer")
    is_single = isinstance(value, str) and not value.startswith("[")
    answers: Sequence[Any] = [value] if is_single else sequence(value, where)
    wrong = [
        answer
        for answer in answers
        if not isinstance(answer["answer"] if _has_answer(answer) else answer, str)
    ]
    if wrong or len({isinstance(answer, str) for answer in answers}) > 1:
        raise ValueError(
            f'{where} are neither all text nor all objects with "answer": {json.dumps(wrong or answers):.80}'
        )
    texts = [answer["answer"] if _has_answer(answer) else answer for answer in answers]
    annotators = [
        tuple(sorted((name, str(value)) for name, value in answer.items() if name != "answer"))
        for answer in answers
        if _has_answer(answer)
    ]
    return VqaReference(
        texts,
        annotators or None,
        record.get("question_type") or None,
        record.get("answer_type") or None,
    )


def _has_answer(answer: object) -> bool:
    return isinstance(answer, dict) and "answer" in answer


def _check(references: Mapping[Key, VqaReference]) -> None:
    require({key: one.answers for key, one in references.items()}, (list, tuple), "references")
    empty = [key for key, reference in references.items() if not reference.answers]
    if empty:
        raise ValueError(f"references: {len(empty)} questions have no answers: {shown(empty)}")
    answers = {
        (key, i): text
        for key, reference in references.items()
        for i, text in enumerate(reference.answers)
    }
    require(answers, str, "references")
    uneven = [
        key
        for key, ref in references.items()
        if ref.annotators is not None and len(ref.annotators) != len(ref.answers)
    ]
    if uneven:
        raise ValueError(
            f"references: {len(uneven)} questions do not have one annotator per answer: {shown(uneven)}"
        )


def _official(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    del stemmed
    texts = [single_line(answer) for answer in answers]
    if len(set(texts)) > 1:
        return normalized(prediction), [normalized(text) for text in texts]
    return single_line(prediction), texts


def _always(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    del stemmed
    return normalized(prediction), [normalized(answer) for answer in answers]


def _released(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    def stripped(text: str) -> str:
        bare = without_punctuation(text)
        return stem(bare) if stemmed else bare

    answer = normalized_words(stripped(single_line(prediction)))
    if len(set(answers)) > 1:
        return answer, [stripped(text) for text in answers]
    return answer, list(answers)


def _textvqa(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    del stemmed
    return textvqa_normalized(prediction), [textvqa_normalized(answer) for answer in answers]


_NORMALIZERS: dict[Mode, Callable[[str, Sequence[str], bool], Normalized]] = {
    "official": _official,
    "always_normalized": _always,
    "released": _released,
    "textvqa": _textvqa,
}
