"""The rows of `.csv` and `.csv.gz` files, local or remote, as a source of records.

The table of a shard has the reserved columns, those that the corpus wants (`Column`) as texts, and `extra`
(large_string): the other columns of the row as a JSON object under the names of the file, or null.

The first row is the header. Fields are quoted as RFC 4180 says; quoted ones may hold line ends and doubled quotes. A
byte order mark is taken off. Rows are numbered from 1 behind the header; empty lines are none. A file without the
columns that are wanted is an error of the whole build, before anything is written. Whatever is wrong with a row is
data: its ledger row says what. A quote that is never closed costs the row that opens it, not those behind it.

Planning reads the inputs once. Rows of a plain file are found again by their offset, those of a packed one in order.
"""

import csv
import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.core.pipeline import RECORD_FIELDS, Reason, Reasons, ShardPlan
from pipelines.readers.columns import EXTRA, ColumnSource, find_columns
from pipelines.readers.files import InputError
from pipelines.readers.jsonl import LINE_REASONS
from pipelines.readers.sequential import OpenReaders, SequentialReader

SUFFIXES = (".csv", ".csv.gz")
MAX_LINE_BYTES = 1 << 20
MAX_LINES = 1000
"""Lines of one row."""
_DAMAGE = (gzip.BadGzipFile, zlib.error, EOFError)

CSV_REASONS: Reasons = MappingProxyType(
    {
        **{w: LINE_REASONS[w] for w in ("record_too_long", "not_utf8")},
        **{w: LINE_REASONS[w] for w in ("input_truncated", "input_corrupt")},
        "row_too_short": Reason("The row has fewer fields than the header."),
        "row_too_long": Reason("The row has more fields than the header."),
        "row_malformed": Reason("The row is not quoted as CSV is."),
        "quote_not_closed": Reason("A quote opens in this row and is not closed."),
    }
)
"""Why a row is no record."""


@dataclass(frozen=True)
class Row:
    """A row: its 1-based number, the byte where it begins, and its fields or why there are none."""

    number: int
    offset: int
    fields: tuple[str, ...] = ()
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class CsvSource(ColumnSource):
    """A `Source`: the rows of the files that match, in the order of the files' names; all columns are texts."""

    suffixes = SUFFIXES

    @property
    def reasons(self) -> Reasons:
        """Why a row is no record."""
        return CSV_REASONS

    def look(self, name: str, limit: int | None = None) -> dict[str, Any]:
        """How many rows a file has, and where each shard's worth of them begins; raises for wrong columns."""
        marks: list[tuple[int, int]] = []
        num_records = 0
        with self._opened(name) as file:
            header = read_header(file, name)
            find_columns(self.columns, header, name)
            for row in islice(read_rows(file, len(header)), limit):
                if num_records % self.samples_per_shard == 0:
                    marks.append((row.number, row.offset))
                num_records += 1
        return {"num_records": num_records, "marks": marks}

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard: reserved columns, wanted ones, and `extra`."""
        rows = [row for part in shard.parts for row in self._read_part(part)]
        return pa.Table.from_pylist(rows, schema=self.schema)

    @property
    def schema(self) -> pa.Schema:
        """Of the table of a shard."""
        wanted = [pa.field(c.name, pa.large_string()) for c in self.columns]
        return pa.schema([*RECORD_FIELDS, *wanted, pa.field(EXTRA, pa.large_string())])

    def _read_part(self, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        name, num_read = part["file"], 0
        with self._opened(name) as file:
            header = read_header(file, name)
        found = find_columns(self.columns, header, name)
        with self._from_row(part, len(header)) as rows:
            for row in islice(rows, part["num_records"]):
                num_read += 1
                yield _record(row, part, header, found)
        if num_read != part["num_records"]:
            raise InputError(
                f"'{name}' has changed: {part['num_records']} records were there from row {part['first']} on "
                f"when the shards were planned, now {num_read}; build into another folder"
            )

    @contextmanager
    def _from_row(self, part: Mapping[str, Any], num_columns: int) -> Iterator[Iterator[Row]]:
        """The rows of a file from one on: behind a mark in a plain file, else where the last shard ended."""
        name, first, (number, offset) = part["file"], part["first"], part["mark"]
        if not name.endswith(".gz"):
            with self._opened(name) as file:
                file.seek(offset)
                yield islice(read_rows(file, num_columns, number, offset), part["skip"], None)
            return
        reader = self._open_readers.take(name, first)
        if reader is None:
            file = self._opened(name)
            read_header(file, name)
            reader = SequentialReader(name, file, read_rows(file, num_columns))
        yield reader.records_from(first)
        self._open_readers.keep(reader)

    def _opened(self, name: str) -> BinaryIO:
        file = self.files.open(name)
        return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if name.endswith(".gz") else file

    @cached_property
    def _open_readers(self) -> OpenReaders[SequentialReader[Row]]:
        return OpenReaders()


def read_header(file: BinaryIO, name: str) -> list[str]:
    """The names of the columns; the file is then at its first row.

    Raises:
        InputError: there is no header, or it cannot be read.
    """
    try:
        line = file.readline(MAX_LINE_BYTES).decode("utf-8-sig")
        header = [column.strip() for column in next(csv.reader([line], strict=True), [])]
    except (UnicodeDecodeError, csv.Error, OSError, *_DAMAGE) as error:
        raise InputError(f"'{name}': its first line is no header of a CSV file: {error}") from None
    if not any(header):
        raise InputError(
            f"'{name}': the file is empty or has no header; its first line names the columns"
        )
    if len(header) == 1 and (mark := re.search("[;\t|]", header[0])) is not None:
        raise InputError(
            f"'{name}': the columns seem to be separated by {mark[0]!r}; write the file with commas"
        )
    return header


def read_rows(
    file: BinaryIO, num_columns: int, number: int = 1, offset: int | None = None
) -> Iterator[Row]:
    """Yield the rows of a file from where it is.

    Args:
        file: unpacked, and behind its header.
        num_columns: of the header.
        number: of the next row.
        offset: of the next row in the file; None asks the file.
    """
    lines = _Lines(file, file.tell() if offset is None else offset)
    while (taken := lines.take_row()) is not None:
        fields, start, reason, detail = taken
        if reason is None and not fields:
            continue  # an empty line
        if reason is None:
            reason, detail = _problem(fields, num_columns)
        yield Row(number, start, () if reason else tuple(fields), reason, detail)
        number += 1


def _problem(fields: Sequence[str], num_columns: int) -> tuple[str | None, str | None]:
    if len(fields) != num_columns:
        word = "row_too_short" if len(fields) < num_columns else "row_too_long"
        return word, f"{len(fields)} fields, the header has {num_columns}"
    for number, text in enumerate(fields, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a byte that `surrogateescape` kept
            byte = ord(text[error.start]) - 0xDC00
            return "not_utf8", f"byte 0x{byte:02x} at character {error.start} of field {number}"
    return None, None


_Taken = tuple[list[str], int, str | None, str | None]


class _Lines:
    """The lines of a file, taken row by row; lines behind an unclosed quote are put back."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file, self._offset = file, offset
        self._waiting: deque[tuple[int, str | None, _Taken | None]] = deque()
        self._used: list[tuple[int, str | None, _Taken | None]] = []
        self._has_ended = False

    def take_row(self) -> _Taken | None:
        """Fields, offset, and what is wrong with the row; None at the end."""
        self._used = []
        reader = csv.reader(self._feed(), strict=True)
        try:
            fields = next(reader, None)
        except _Unreadable as error:
            return error.taken
        except csv.Error as error:
            return self._broken(str(error))
        return None if fields is None else (fields, self._used[0][0], None, None)

    def _broken(self, problem: str) -> _Taken:
        """What is wrong with the row that begins at the first line used; those behind it may be whole."""
        start = self._used[0][0]
        self._waiting.extendleft(reversed(self._used[1:]))
        if "unexpected end of data" in problem or len(self._used) > 1:
            return [], start, "quote_not_closed", None
        if "field larger than field limit" in problem:
            limit = f"a field has more than {csv.field_size_limit()} characters"
            return [], start, "record_too_long", limit
        return [], start, "row_malformed", problem

    def _feed(self) -> Iterator[str]:
        while len(self._used) < MAX_LINES:
            found = self._waiting.popleft() if self._waiting else self._next()
            if found is None:
                return
            _, text, taken = found
            if taken is not None and self._used:  # a row that has begun ends before it
                self._waiting.appendleft(found)
                return
            self._used.append(found)
            if taken is not None:
                raise _Unreadable(taken)
            assert text is not None
            yield text

    def _next(self) -> tuple[int, str | None, _Taken | None] | None:
        """The next line, or what stands for one that cannot be read."""
        if self._has_ended:
            return None
        start = self._offset
        try:
            data = self._file.readline(MAX_LINE_BYTES + 1)
            self._offset += len(data)
            if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
                self._skip_line()
                limit = f"more than {MAX_LINE_BYTES} bytes"
                return start, None, ([], start, "record_too_long", limit)
        except _DAMAGE as error:
            self._has_ended = True
            word = "input_truncated" if isinstance(error, EOFError) else "input_corrupt"
            return start, None, ([], start, word, type(error).__name__)
        if not data:
            return None
        return start, data.decode("utf-8", "surrogateescape"), None

    def _skip_line(self) -> None:
        while data := self._file.readline(MAX_LINE_BYTES):
            self._offset += len(data)
            if data.endswith(b"\n"):
                return


class _Unreadable(Exception):
    """Stands where a line would be; holds what the row is."""

    def __init__(self, taken: _Taken) -> None:
        self.taken = taken


def _record(
    row: Row, part: Mapping[str, Any], header: Sequence[str], found: Mapping[str, str]
) -> dict[str, Any]:
    record = {
        "key": f"{part['stem']}-{row.number:07d}",
        "source": part["file"],
        "record": row.number,
        "links": [],
        "drop_reason": row.reason,
        "drop_detail": row.detail,
    }
    if row.reason is not None:
        return record
    values = dict(zip(header, row.fields, strict=True))
    record |= {name: values.pop(there) for name, there in found.items()}
    return record | {
        EXTRA: json.dumps(values, sort_keys=True, ensure_ascii=False) if values else None
    }
