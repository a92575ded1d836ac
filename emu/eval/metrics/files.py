"""What metrics read: options of the command, records of JSON, JSON lines and CSV files, and their ids and fields.

Ids become text, so that the numbers of one file match the strings of another. An id that appears twice where one
value is expected is an error. Errors name the file and the line, record or field.
"""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from emu.eval.metrics.metric import Bootstrap, Score, keyed, shown
from schemas import strict_json
from schemas.strict_json import JsonError

Record = Mapping[str, Any]
Value = TypeVar("Value")
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv")
# Fields that hold the id of a sample; two fields together where one is not unique.
_ID_FIELDS = (
    ("question_id",),
    ("image_id", "round_id"),
    ("video", "qid"),
    ("image_id",),
    ("id",),
    ("key",),
    ("image",),
)
# Keys under which files wrap their list of records.
_WRAPPERS = ("annotations", "data")


@dataclass(frozen=True)
class ScoreFiles(ABC):
    """Options that every metric has; a subclass adds its own and computes the scores of the two files."""

    predictions: Path
    """File with the outputs of a model."""
    references: Path
    """File with the correct captions, answers, ranks or features."""
    output: Path | None = None
    """JSON file to write with the scores of all samples. None: NAME.scores.json beside the predictions."""
    num_resamples: int = 1000
    """Bootstrap resamples for the 95% confidence interval. 0: no interval."""
    seed: int = 0
    """Seed of the bootstrap resampling."""

    predictions_example: ClassVar[str]
    """Contents of a small file of predictions, for the help text and the contract test."""
    references_example: ClassVar[str]
    """Contents of the file of references that belongs to it."""

    @abstractmethod
    def scores(self, metric: str) -> list[Score]:
        """The scores under the metric's name in the registry.

        Raises ValueError, FileNotFoundError or ModuleNotFoundError with what is wrong with the inputs.
        """

    def inputs(self) -> list[Path]:
        """The files that are read; the output may be none of them."""
        return [self.predictions, self.references]

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are computed."""
        return Bootstrap(self.num_resamples, seed=self.seed)


def predicted_values(path: Path, *names: str) -> dict[str, Any]:
    """The first of the named fields, by id.

    The file has a list of records, or an object from ids to values, to records, or to objects from a second part of
    the id to values (NExT-OE: video, then question).
    """
    found = read_json(path)
    if isinstance(found, dict) and not any(isinstance(found.get(name), list) for name in _WRAPPERS):
        return keyed(_nested_values(found, names), str(path))
    return values_by_id(path, lambda record: value_of(record, path, *names))


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


def values_by_id(path: Path, value: Callable[[Record], Value]) -> dict[str, Value]:
    """`value` of each record, by id; raises ValueError for an id that appears more than once."""
    return keyed(((record_id(one, path), value(one)) for one in read_records(path)), str(path))


def read_json(path: Path) -> Any:
    """The contents of a JSON, JSON lines or CSV file; lines and rows become a list.

    Raises FileNotFoundError without the file, and ValueError with the line if the contents do not match the suffix,
    an object has a duplicate key, or the number of fields of a row differs from the header.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file" if path.exists() else f"no file {path}; check the path"
        )
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"{path} has the suffix {suffix!r}; supported suffixes are {', '.join(_SUFFIXES)}"
        )
    text = _text(path)
    if suffix == ".csv":
        return _rows(text, path)
    if suffix == ".json":
        return _parsed(text, str(path))
    # not splitlines, which also splits at U+2028 and other separators inside strings
    lines = enumerate(text.split("\n"), 1)
    return [_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def read_records(path: Path) -> list[Record]:
    """The records of a file, or of the list under "annotations" or "data"."""
    found = read_json(path)
    if isinstance(found, dict):
        found = next(
            (found[name] for name in _WRAPPERS if isinstance(found.get(name), list)), found
        )
    if not isinstance(found, list):
        raise ValueError(
            f'{path} has no list of objects, neither at the top level nor under "annotations" or "data"'
        )
    wrong = [index for index, record in enumerate(found) if not isinstance(record, dict)]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} entries are not objects; the first one is at index {wrong[0]}"
        )
    return found


def record_id(record: Record, path: Path) -> str:
    """The id of a record as text; the two parts of a compound id are joined by an underscore.

    Raises ValueError for a record without an id, and for an id that is neither text nor a whole number.
    """
    names = next((names for names in _ID_FIELDS if all(name in record for name in names)), None)
    if names is None:
        expected = ", ".join("+".join(names) for names in _ID_FIELDS)
        raise ValueError(
            f"{path}: a record has no id; expected {expected}, found {', '.join(map(str, record))}"
        )
    for name in names:
        value = record[name]
        if value == "" or isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(
                f"{path}: a record has the {name} {value!r}; ids are text or whole numbers"
            )
    return "_".join(str(record[name]) for name in names)


def value_of(record: Record, path: Path, *names: str) -> Any:
    """The first of the named fields; raises ValueError for a record that has none of them."""
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"{path}: record {record_id(record, path)!r} has no {' or '.join(names)}")


def integer(value: object, what: str) -> int:
    """An int, or text that spells one; raises ValueError for anything else, including 1.0 and true."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return int(value)
    raise ValueError(f"{what} is {value!r:.80}; it must be a whole number")


def sequence(value: object, what: str) -> Sequence[Any]:
    """A list, or text that holds one as JSON (a cell of a CSV file); raises ValueError for anything else."""
    found = value
    if isinstance(value, str):
        found = _parsed(value, what) if value.startswith("[") else None
    if not isinstance(found, list):
        raise ValueError(f"{what} is {value!r:.80}; it must be a list")
    return found


def numbers(value: object, what: str) -> list[float]:
    """A list of numbers, read as by `sequence`; raises ValueError if an element is not a number."""
    found = sequence(value, what)
    wrong = [one for one in found if isinstance(one, bool) or not isinstance(one, int | float)]
    if wrong:
        raise ValueError(f"{what} has {len(wrong)} values that are not numbers: {shown(wrong)}")
    try:
        return [float(one) for one in found]
    except OverflowError as error:
        raise ValueError(f"{what} has a number beyond 1e308") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}; save it as UTF-8"
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return strict_json.loads(text)
    except JsonError as error:
        if error.path is not None:
            raise ValueError(f"{where}: {error}") from error
        hint = ""
        if "Extra data" in error.detail:
            hint = "; a .json file has one value, a .jsonl file one value per line"
        raise ValueError(f"{where} is {error}{hint}") from error


def _rows(text: str, path: Path) -> list[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not valid CSV: {error}") from error
    if not rows:
        return []
    header = rows[0][1]
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        raise ValueError(f"{path}: the header is {header[0]!r}; separate the fields with commas")
    if len(set(header)) != len(header):
        raise ValueError(f"{path}: the header has a duplicate field: {', '.join(header)}")
    uneven = [f"line {line} has {len(row)}" for line, row in rows if len(row) != len(header)]
    if uneven:
        raise ValueError(
            f"{path}: {len(uneven)} rows do not have the {len(header)} fields of the header: "
            f"{', '.join(uneven[:5])}; quote fields that contain a comma"
        )
    return [dict(zip(header, row, strict=True)) for _, row in rows[1:]]
