"""Records and their fields from JSON, JSON lines and CSV, with errors that name the file and the place."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from emu.eval.metrics.metric import shown
from schemas import strict_json
from schemas.strict_json import JsonError

Record = Mapping[str, Any]
_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv")
# Names that files use for the id of what is scored; two of them together where one is not enough.
_ID_FIELDS = (
    ("question_id",),
    ("image_id", "round_id"),
    ("video", "qid"),
    ("image_id",),
    ("id",),
    ("key",),
    ("image",),
)


def read_json(path: Path) -> Any:
    """What a JSON, JSON lines or CSV file holds; rows become records.

    Raises FileNotFoundError without the file, and ValueError with the place where it is not of the form its name says,
    where an object has a key twice, and where a row has another number of fields than the header.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file" if path.exists() else f"no file {path}; is the path right?"
        )
    suffix = path.suffix.lower()
    if suffix not in _ENDINGS:
        raise ValueError(f"{path} ends in {suffix!r}; files end in {', '.join(_ENDINGS)}")
    text = _text(path)
    if suffix == ".csv":
        return _rows(text, path)
    if suffix == ".json":
        return _parsed(text, str(path))
    # not splitlines, which also ends a line at U+2028 and its like, inside strings too
    lines = enumerate(text.split("\n"), 1)
    return [_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def read_records(path: Path) -> list[Record]:
    """The records of a file; those under "annotations" or "data" where the file wraps them."""
    found = read_json(path)
    if isinstance(found, dict):
        found = next(
            (found[name] for name in ("annotations", "data") if isinstance(found.get(name), list)),
            found,
        )
    if not isinstance(found, list):
        raise ValueError(
            f'{path} holds no list of objects, nor an object with one under "annotations" or "data"'
        )
    wrong = [index for index, record in enumerate(found) if not isinstance(record, dict)]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} entries are not objects, the first is entry {wrong[0]}"
        )
    return found


def record_id(record: Record, path: Path) -> str:
    """The id of a record as text; of two parts, joined by an underscore.

    Raises ValueError where it has none, or one that is neither text nor a whole number.
    """
    names = next((names for names in _ID_FIELDS if all(name in record for name in names)), None)
    if names is None:
        expected = ", ".join("+".join(names) for names in _ID_FIELDS)
        raise ValueError(
            f"{path}: a record has no id; looked for {expected} among {', '.join(map(str, record))}"
        )
    for name in names:
        value = record[name]
        if value == "" or isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(
                f"{path}: a record has the {name} {value!r}; ids are text or whole numbers"
            )
    return "_".join(str(record[name]) for name in names)


def value_of(record: Record, path: Path, *names: str) -> Any:
    """The first field of these names; raises ValueError where the record has none of them."""
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"{path}: record {record_id(record, path)!r} has no {' or '.join(names)}")


def whole_number(value: object, what: str) -> int:
    """An int, or text that spells one; raises ValueError for anything else, 1.0 and true included."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return int(value)
    raise ValueError(f"{what} is {value!r:.80}; it must be a whole number")


def listed(value: object, what: str) -> Sequence[Any]:
    """A list, or text that holds one as JSON, as a cell of a CSV file does; raises ValueError for anything else."""
    found = value
    if isinstance(value, str):
        found = _parsed(value, what) if value.startswith("[") else None
    if not isinstance(found, list):
        raise ValueError(f"{what} is {value!r:.80}; it must be a list")
    return found


def numbers(value: object, what: str) -> list[float]:
    """A list of numbers, as `listed` reads it; raises ValueError for one that holds anything else."""
    found = listed(value, what)
    wrong = [one for one in found if isinstance(one, bool) or not isinstance(one, int | float)]
    if wrong:
        raise ValueError(f"{what} holds {len(wrong)} values that are no numbers: {shown(wrong)}")
    try:
        return [float(one) for one in found]
    except OverflowError as error:
        raise ValueError(f"{what} holds a number beyond 1e308") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}; save it as UTF-8"
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return strict_json.loads(text)
    except JsonError as error:
        if error.path is not None:
            raise ValueError(f"{where}: {error}") from error
        hint = (
            "; .json holds one value, .jsonl one per line" if "Extra data" in error.detail else ""
        )
        raise ValueError(f"{where} is {error}{hint}") from error


def _rows(text: str, path: Path) -> list[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}") from error
    if not rows:
        return []
    header = rows[0][1]
    if len(header) == 1 and any(sign in header[0] for sign in ";\t"):
        raise ValueError(f"{path}: the header is {header[0]!r}; commas separate the fields of CSV")
    if len(set(header)) != len(header):
        raise ValueError(f"{path}: the header names a field twice: {', '.join(header)}")
    uneven = [f"line {line} has {len(row)}" for line, row in rows if len(row) != len(header)]
    if uneven:
        raise ValueError(
            f"{path}: {len(uneven)} rows have not {len(header)} fields as the header has: {', '.join(uneven[:5])}; "
            "a field with a comma stands in double quotes"
        )
    return [dict(zip(header, row, strict=True)) for _, row in rows[1:]]
