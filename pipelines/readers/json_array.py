"""The records of `.json` files that hold an array, beside the lines of `.jsonl` files, as a source of records.

The table of a shard is that of `pipelines.readers.jsonl`: the column `line` holds the text of one record. An array is
never loaded as a whole: brackets and strings are followed piece by piece, and what stands between two commas of the
array is a record, whether it is valid JSON or not. So memory is bounded by the limit on one record, and a broken record
costs its neighbours nothing as long as its brackets and quotes are balanced.

A `.json` file that does not begin with `[` holds values one after the other, each ended by a line feed outside of its
brackets: JSON lines under another name, or a single object. The number of a record is its place in the array, from 1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

from pipelines.core.pipeline import Reason, Reasons
from pipelines.readers.jsonl import (
    LINE_REASONS,
    SUFFIXES,
    Broken,
    Line,
    LineSource,
    Piece,
    pieces_of,
)

ARRAY_SUFFIXES = (".json", ".json.gz")
ARRAY_REASONS: Reasons = MappingProxyType(
    {
        "malformed_array": Reason(
            "There is unexpected text between or after the records of a JSON array."
        )
    }
)

_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_OUTSIDE = re.compile(rb'["\[\]{},\n]')
"""What changes the state outside of strings."""
_INSIDE = re.compile(rb'(?:[^"\\\n]++|\\.)*+')
"""What a string holds; ends before its quote, a line feed, or a backslash whose character is in the next piece."""


@dataclass(frozen=True)
class ArraySource(LineSource):
    """A `Source`: the records of the files that match, arrays and lines, in the order of the files' names."""

    suffixes = (*ARRAY_SUFFIXES, *SUFFIXES)
    seekable = (".jsonl", ".json")

    @property
    def reasons(self) -> Reasons:
        """Why something in an input is no record."""
        return {**LINE_REASONS, **ARRAY_REASONS}

    def records_of(
        self, file: BinaryIO, name: str, number: int = 1, offset: int = 0
    ) -> Iterator[Line]:
        """The records of an open input, from `number` at byte `offset` on."""
        if name.endswith(ARRAY_SUFFIXES):
            return read_array(file, name, self.max_line_bytes, number, offset)
        return super().records_of(file, name, number, offset)


def read_array(
    file: BinaryIO, name: str, max_bytes: int, number: int = 1, offset: int = 0
) -> Iterator[Line]:
    """Yield the records of an open input, from `number` at byte `offset` on.

    Args:
        file: the input as stored (compressed as its name says).
        name: its name; the suffix decides how it is unpacked.
        max_bytes: limit on one record; a longer one becomes a `record_too_long`.
        number: number of the record at `offset`.
        offset: where it begins; only for a plain `.json`.
    """
    assert offset == 0 or name.endswith(".json"), name
    splitter = _Splitter(max_bytes, number, offset)
    if offset:
        splitter.resume(*_state_at(file, offset))
        file.seek(offset)
    for piece in pieces_of(file, name):
        yield from splitter.feed(piece)
    yield from splitter.end()


def _state_at(file: BinaryIO, offset: int) -> tuple[bool, bytes]:
    """Whether a plain file is an array, and the byte before `offset`."""
    head = file.read(len(_BOM)).removeprefix(_BOM).lstrip(_SPACE)
    while not head and (chunk := file.read(4096)):
        head = chunk.lstrip(_SPACE)
    file.seek(offset - 1)
    return head[:1] == b"[", file.read(1)


class _Splitter:
    """Cuts the bytes of an input into records; holds one record of at most `max_bytes`."""

    def __init__(self, max_bytes: int, number: int, offset: int) -> None:
        self.max_bytes, self.number = max_bytes, number
        self.is_array: bool | None = None
        """Unknown until the first character."""
        self.is_over = False
        """Behind the end of the array, or of what can be read."""
        self._offset = self._position = offset  # of the record, and of the next piece
        self._parts: list[bytes] = []
        self._length, self._is_blank = 0, True
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self._is_damaged, self._is_first = False, True
        self._head = (
            b""  # what is not scanned yet: at the start until a byte order mark could be told
        )

    def resume(self, is_array: bool, before: bytes) -> None:
        """Start at a record in the middle of an input, given the byte before it."""
        self.is_array = is_array
        self.is_over = is_array and before == b"]"
        self._is_first = before == b"["

    def feed(self, piece: Piece) -> Iterator[Line]:
        """The records that end in this piece."""
        if isinstance(piece, Broken):
            self._is_damaged = True
            yield self._line(b"", piece.reason, piece.detail)
        elif isinstance(piece, bytes) and not self._is_damaged:
            self._head += piece
            if self._position or len(self._head) >= len(_BOM):
                yield from self._take()

    def _take(self) -> Iterator[Line]:
        piece, self._head = self._head, b""
        begin = self._opened(piece) if self.is_array is None else 0
        yield from self._scan(piece, begin)
        self._position += len(piece)

    def end(self) -> Iterator[Line]:
        """The last record, what follows the array, or that it was not closed."""
        yield from self._take()
        if self._is_damaged or (self._is_blank and not (self.is_array and not self.is_over)):
            return
        if self.is_over:
            yield self._line(
                b"", "malformed_array", f"something follows the array, at byte {self._offset}"
            )
        elif self.is_array:
            detail = f"the array is not closed; its last record begins at byte {self._offset}"
            yield self._line(b"", "input_truncated", detail)
        else:
            yield self._record()

    def _opened(self, piece: bytes) -> int:
        """Where the records begin in the first piece that is not blank; tells an array from values."""
        begin = len(_BOM) if self._position == 0 and piece.startswith(_BOM) else 0
        found = _NOT_SPACE.search(piece, begin)
        if found is None:
            return len(piece)
        self.is_array = found[0] == b"["
        begin = found.end() if self.is_array else found.start()
        self._offset = self._position + begin
        return begin

    def _scan(self, piece: bytes, begin: int) -> Iterator[Line]:
        at = begin
        while at < len(piece) and not self.is_over:
            if self._in_string:
                at = self._through_string(piece, at)
                continue
            found = _OUTSIDE.search(piece, at)
            if found is None:
                break
            at = found.end()
            if self._ends_record(found[0]):
                self._add(piece[begin : at - 1])
                yield from self._ended(found[0], self._position + at)
                begin = at
        self._add(piece[begin:])

    def _through_string(self, piece: bytes, at: int) -> int:
        """Go on to the end of a string or of the piece."""
        if self._is_escaped and piece[at : at + 1] != b"\n":
            at += 1
        self._is_escaped = False
        found = _INSIDE.match(piece, at)
        at = found.end() if found else at
        char = piece[at : at + 1]
        self._in_string = char != b'"'
        self._is_escaped = char == b"\\" and at + 1 == len(piece)
        if (
            char == b"\n" and not self.is_array
        ):  # the quote is missing: the record ends with its line
            self._in_string, self._depth = False, 0
            return at
        return at + len(char)

    def _ends_record(self, char: bytes) -> bool:
        """Follow a character outside of strings; true if it ends the record."""
        if char == b'"':
            self._in_string = True
        elif char in (b"[", b"{"):
            self._depth += 1
        elif char in (b"]", b"}") and self._depth:
            self._depth -= 1
        elif not self._depth:
            return char in ((b",", b"]") if self.is_array else (b"\n",))
        return False

    def _ended(self, char: bytes, next_offset: int) -> Iterator[Line]:
        """The record that a character ends, if it is one; the next begins behind it."""
        self.is_over = char == b"]"
        is_empty_array = self.is_over and self._is_blank and self._is_first
        if not is_empty_array and (self.is_array or not self._is_blank):
            yield self._record()
        self._is_first = False
        self._parts, self._length, self._is_blank = [], 0, True
        self._offset = next_offset

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        self._is_blank = self._is_blank and not part.strip(_SPACE)
        if self._length > self.max_bytes or self._is_damaged:
            self._parts = []
        elif part:
            self._parts.append(part)

    def _record(self) -> Line:
        if self._length > self.max_bytes:
            return self._line(b"", "record_too_long", f"more than {self.max_bytes} bytes")
        return self._line(b"".join(self._parts).strip(_SPACE))

    def _line(self, data: bytes, reason: str | None = None, detail: str | None = None) -> Line:
        line = Line(self.number, self._offset, data, reason, detail)
        self.number += 1
        return line
