"""Predictions and references from files: COCO and VQA results, CSV, JSON and JSON lines.

Ids become text, so that the numbers of one file meet the strings of another; an id that appears twice where one
answer is expected is an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu.eval.metrics.metric import keyed
from emu.eval.metrics.video_qa import ChoiceReference, WordReference
from emu.eval.metrics.visdial import VisdialReference
from emu.eval.metrics.vqa import VqaReference
from emu.eval.metrics.wups import OpenReference

Record = Mapping[str, Any]
# Names that files use for the id of what is scored; two of them together where one is not enough.
_ID_FIELDS = (
    ("question_id",),
    ("image_id", "round_id"),
    ("video", "qid"),
    ("image_id",),
    ("id",),
    ("key",),
)


def read_json(path: Path) -> Any:
    """What a JSON, JSON lines or CSV file holds; rows become records."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as rows:
            return list(csv.DictReader(rows))
    if suffix not in (".json", ".jsonl", ".ndjson"):
        raise ValueError(f"{path} ends in {suffix!r}; files end in .json, .jsonl, .ndjson or .csv")
    text = path.read_text(encoding="utf-8")
    try:
        if suffix == ".json":
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not {suffix[1:]}: {error}") from error


def read_records(path: Path) -> list[Record]:
    """The records of a file; those under "annotations" or "data" where the file wraps them."""
    found = read_json(path)
    if isinstance(found, dict):
        wrapped = next(
            (found[name] for name in ("annotations", "data") if isinstance(found.get(name), list)),
            None,
        )
        if wrapped is None:
            raise ValueError(
                f'{path} holds one object; expected a list, or a list under "annotations" or "data"'
            )
        found = wrapped
    wrong = [index for index, record in enumerate(found) if not isinstance(record, dict)]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} entries are not objects, the first is entry {wrong[0]}"
        )
    return found


def record_id(record: Record, path: Path) -> str:
    """The id of a record as text; of two parts, joined by an underscore."""
    for names in _ID_FIELDS:
        if all(record.get(name) not in (None, "") for name in names):
            return "_".join(str(record[name]) for name in names)
    expected = ", ".join("+".join(names) for names in _ID_FIELDS)
    raise ValueError(
        f"{path}: a record has no id; looked for {expected} among {', '.join(map(str, record))}"
    )


def value_of(record: Record, path: Path, *names: str) -> Any:
    """The first field of these names; raises ValueError where the record has none of them."""
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"{path}: record {record_id(record, path)!r} has no {' or '.join(names)}")


def predicted_values(path: Path, *names: str) -> dict[str, Any]:
    """One value an id: from records, or from an object of ids (an id may hold ids in turn, as NExT-OE's files do)."""
    found = read_json(path)
    if isinstance(found, dict) and not any(
        isinstance(found.get(name), list) for name in ("annotations", "data")
    ):
        return _nested_values(found, names)
    return keyed(
        ((record_id(one, path), value_of(one, path, *names)) for one in read_records(path)),
        str(path),
    )


def _nested_values(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in found.items():
        if not isinstance(value, dict):
            values[key] = value
            continue
        named = next((name for name in names if name in value), None)
        if named is not None:
            values[key] = value[named]
        else:
            values |= {f"{key}_{inner}": answer for inner, answer in value.items()}
    return values


def caption_references(path: Path) -> dict[str, list[str]]:
    """The captions of each image, in the file's order."""
    captions: dict[str, list[str]] = {}
    for record in read_records(path):
        captions.setdefault(record_id(record, path), []).append(value_of(record, path, "caption"))
    return captions


def vqa_references(path: Path) -> dict[str, VqaReference]:
    """The annotators' answers of each question; what a record of an answer has beside its text tells answers apart."""
    return keyed(
        ((record_id(one, path), _vqa_reference(one, path)) for one in read_records(path)), str(path)
    )


def _vqa_reference(record: Record, path: Path) -> VqaReference:
    answers: Any = value_of(record, path, "answers", "answer")
    if isinstance(answers, str):
        answers = json.loads(answers) if answers.startswith("[") else [answers]
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(texts) == len(answers):
        return VqaReference(texts, None, record.get("question_type"), record.get("answer_type"))
    wrong = [answer for answer in answers if not isinstance(answer, dict) or "answer" not in answer]
    if wrong:
        raise ValueError(
            f"{path}: question {record_id(record, path)!r} has an answer that is none: {wrong[0]!r}"
        )
    texts = [answer["answer"] for answer in answers]
    rest = [
        tuple(sorted((name, str(value)) for name, value in answer.items() if name != "answer"))
        for answer in answers
    ]
    return VqaReference(texts, rest, record.get("question_type"), record.get("answer_type"))


def choice_references(path: Path) -> dict[str, ChoiceReference]:
    """The right option and the type of each multiple-choice question."""
    return keyed(
        (
            (
                record_id(one, path),
                ChoiceReference(
                    int(value_of(one, path, "answer")), value_of(one, path, "type", "question_type")
                ),
            )
            for one in read_records(path)
        ),
        str(path),
    )


def open_references(path: Path) -> dict[str, OpenReference]:
    """The answer and the type of each open question."""
    return keyed(
        (
            (
                record_id(one, path),
                OpenReference(
                    [value_of(one, path, "answer")], value_of(one, path, "type", "question_type")
                ),
            )
            for one in read_records(path)
        ),
        str(path),
    )


def word_references(path: Path) -> dict[str, WordReference]:
    """The one-word answer of each question."""
    return keyed(
        (
            (
                record_id(one, path),
                WordReference(value_of(one, path, "answer"), one.get("question")),
            )
            for one in read_records(path)
        ),
        str(path),
    )


def visdial_predictions(path: Path) -> dict[str, list[float]]:
    """The scores of each question's candidates; ranks (1 is best) become their negatives."""
    return keyed(
        ((record_id(one, path), _candidate_scores(one, path)) for one in read_records(path)),
        str(path),
    )


def _candidate_scores(record: Record, path: Path) -> list[float]:
    values = value_of(record, path, "scores", "ranks")
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise ValueError(
            f"{path}: record {record_id(record, path)!r} has scores that are not numbers: {values!r:.80}"
        )
    return (
        [float(value) for value in values]
        if "scores" in record
        else [-float(value) for value in values]
    )


def visdial_references(path: Path) -> dict[str, VisdialReference]:
    """The given answer's index, from 0, and the relevance of the candidates where annotated."""
    return keyed(
        (
            (
                record_id(one, path),
                VisdialReference(
                    int(value_of(one, path, "gt_index", "target")),
                    one.get("gt_relevance", one.get("relevance")),
                ),
            )
            for one in read_records(path)
        ),
        str(path),
    )
