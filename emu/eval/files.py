"""Predictions and references from files: COCO and VQA results, CSV, JSON and JSON lines.

Ids become text, so that the numbers of one file meet the strings of another; an id that appears twice where one
answer is expected is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from emu.eval.metrics.metric import keyed
from emu.eval.metrics.video_qa import ChoiceReference, WordReference
from emu.eval.metrics.visdial import VisdialReference
from emu.eval.metrics.vqa import VqaReference
from emu.eval.metrics.wups import OpenReference
from emu.eval.records import (
    Record,
    listed,
    numbers,
    read_json,
    read_records,
    record_id,
    value_of,
    whole_number,
)

Value = TypeVar("Value")


def predicted_values(path: Path, *names: str) -> dict[str, Any]:
    """One value an id: from records, or from an object of ids (an id may hold ids in turn, as NExT-OE's files do)."""
    found = read_json(path)
    if isinstance(found, dict) and not any(
        isinstance(found.get(name), list) for name in ("annotations", "data")
    ):
        return keyed(_nested_values(found, names), str(path))
    return _by_id(path, lambda record: value_of(record, path, *names))


def _nested_values(found: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if not isinstance(value, dict):
            yield key, value
            continue
        named = next((name for name in names if name in value), None)
        if named is not None:
            yield key, value[named]
        else:
            yield from ((f"{key}_{inner}", answer) for inner, answer in value.items())


def choice_predictions(path: Path) -> dict[str, int]:
    """The number of the chosen option of each question."""
    values = predicted_values(path, "prediction", "answer")
    return {
        key: whole_number(value, f"{path}: the prediction of {key!r}")
        for key, value in values.items()
    }


def caption_references(path: Path) -> dict[str, list[str]]:
    """The captions of each image, in the file's order."""
    captions: dict[str, list[str]] = {}
    for record in read_records(path):
        captions.setdefault(record_id(record, path), []).append(value_of(record, path, "caption"))
    return captions


def vqa_references(path: Path) -> dict[str, VqaReference]:
    """The annotators' answers of each question; what a record of an answer has beside its text tells answers apart.

    Raises ValueError where no question has more than one answer: agreement is then 0, whatever is predicted.
    """
    references = _by_id(path, lambda record: _vqa_reference(record, path))
    if references and all(len(one.answers) == 1 for one in references.values()):
        raise ValueError(
            f"{path}: no question has more than one answer, and the agreement of annotators needs several; msvdqa "
            "compares single answers"
        )
    return references


def _vqa_reference(record: Record, path: Path) -> VqaReference:
    where = f"{path}: the answers of question {record_id(record, path)!r}"
    value: Any = value_of(record, path, "answers", "answer")
    answers = [value] if _is_plain(value) else listed(value, where)
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
    rest = [
        tuple(sorted((name, str(value)) for name, value in answer.items() if name != "answer"))
        for answer in answers
        if _has_answer(answer)
    ]
    return VqaReference(
        texts, rest or None, record.get("question_type") or None, record.get("answer_type") or None
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and not value.startswith("[")


def _has_answer(answer: object) -> bool:
    return isinstance(answer, dict) and "answer" in answer


def choice_references(path: Path) -> dict[str, ChoiceReference]:
    """The right option and the type of each multiple-choice question."""

    def reference(record: Record) -> ChoiceReference:
        right = whole_number(
            value_of(record, path, "answer"), f"{path}: the answer of {record_id(record, path)!r}"
        )
        return ChoiceReference(right, value_of(record, path, "type", "question_type"))

    return _by_id(path, reference)


def open_references(path: Path) -> dict[str, OpenReference]:
    """The answer and the type of each open question."""
    return _by_id(
        path,
        lambda record: OpenReference(
            [value_of(record, path, "answer")], value_of(record, path, "type", "question_type")
        ),
    )


def word_references(path: Path) -> dict[str, WordReference]:
    """The one-word answer of each question."""
    return _by_id(
        path,
        lambda record: WordReference(value_of(record, path, "answer"), record.get("question")),
    )


def visdial_predictions(path: Path) -> dict[str, list[float]]:
    """The scores of each question's candidates; ranks (1 is best) become their negatives.

    Raises ValueError for ranks that are not 1 to the number of candidates, each once.
    """
    return _by_id(path, lambda record: _candidate_scores(record, path))


def _candidate_scores(record: Record, path: Path) -> list[float]:
    name = "scores" if "scores" in record else "ranks"
    where = f"{path}: record {record_id(record, path)!r}: {name}"
    values = numbers(value_of(record, path, "scores", "ranks"), where)
    if name == "scores":
        return values
    if sorted(values) != list(range(1, len(values) + 1)):
        raise ValueError(
            f"{where} are not 1 to {len(values)}, each once: {values!r:.80}; give scores where candidates tie"
        )
    return [-value for value in values]


def visdial_references(path: Path) -> dict[str, VisdialReference]:
    """The given answer's index, from 0, and the relevance of the candidates, where a record has them.

    The challenge's file of dense annotations has relevance alone.
    """

    def reference(record: Record) -> VisdialReference:
        where = f"{path}: record {record_id(record, path)!r}:"
        relevance: Any = record.get("gt_relevance", record.get("relevance"))
        # an empty cell of a CSV file has none either
        relevance = None if relevance == "" else relevance
        target = None
        if relevance is None or "gt_index" in record or "target" in record:
            target = whole_number(value_of(record, path, "gt_index", "target"), f"{where} gt_index")
        if relevance is not None:
            relevance = numbers(relevance, f"{where} gt_relevance")
        return VisdialReference(target, relevance)

    return _by_id(path, reference)


def _by_id(path: Path, value: Callable[[Record], Value]) -> dict[str, Value]:
    return keyed(((record_id(one, path), value(one)) for one in read_records(path)), str(path))
