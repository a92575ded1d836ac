"""The lines of `.jsonl`, `.jsonl.gz` and `.jsonl.zip` files, local or remote, as a source of records.

The table of a shard has the reserved columns and `line` (large_string): the text, or null for a line that
could not be read and carries its `drop_reason` from the start. Whatever can be wrong with a line is data.

Counting and reading use the same iterator, so they agree on broken inputs too. Lines end at a line feed; a line of
nothing but white space is no record, but has a number. Memory is bounded by the limit on one line. The members of
a zip whose names end in `.jsonl` are read in the order of their names and numbered as if they were one file; every
other member takes one line, which says so, except those that macOS adds (`__MACOSX/`).
"""

import errno
import gzip
import logging
import lzma
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO, ClassVar, cast

import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import RECORD_FIELDS, Reason, Reasons, ShardPlan
from pipelines.readers.files import FileSource, InputError
from pipelines.readers.sequential import OpenReaders, SequentialReader

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zip")
MEMBER_SUFFIX = ".jsonl"
CHUNK_BYTES = 1 << 20
_DAMAGE = (
    *(zlib.error, lzma.LZMAError, struct.error, gzip.BadGzipFile, zipfile.BadZipFile),
    # Of a damaged directory: unknown methods, encryption, negative offsets, names that cannot be decoded.
    *(NotImplementedError, RuntimeError, ValueError, EOFError, OSError),
)

LINE_REASONS: Reasons = MappingProxyType(
    {
        "record_too_long": Reason("The record is longer than the limit."),
        "not_utf8": Reason("The record is not valid UTF-8."),
        "input_truncated": Reason("The input ends too early; the rest is lost.", is_damage=True),
        "input_corrupt": Reason(
            "The compressed input cannot be decompressed from here on.", is_damage=True
        ),
        "input_empty": Reason("The input is empty; perhaps its download failed."),
        "not_a_jsonl_member": Reason(
            "The name of this zip member does not end in .jsonl; it was not read."
        ),
    }
)
"""Why a line is no record: reason -> one sentence for a person."""


@dataclass(frozen=True)
class Line:
    """One line: its 1-based number, the byte where it begins, and its bytes or why there are none."""

    number: int
    offset: int
    """Bytes from the start of the unpacked input; lines of a plain file can be found again by it."""
    data: bytes
    reason: str | None = None
    detail: str | None = None

    def decode(self) -> "str | Broken":
        """The text (a byte order mark at the very start is taken off), or why there is none."""
        if self.reason is not None:
            return Broken(self.reason, self.detail or "")
        try:
            return self.data.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"byte 0x{self.data[error.start]:02x} at position {error.start}"
            return Broken("not_utf8", f"{found}: {error.reason}")


@dataclass(frozen=True)
class Broken:
    """What is wrong with a line, or with an input from here on; `reason` is a word of `LINE_REASONS`."""

    reason: str
    detail: str


@dataclass(frozen=True)
class EndOfMember:
    """The end of one of several inputs joined into one: a line ends here too."""


Piece = bytes | Broken | EndOfMember
"""Of an unpacked input."""


def read_lines(
    file: BinaryIO, name: str, max_bytes: int, number: int = 1, offset: int = 0
) -> Iterator[Line]:
    """Yield the records of an open input, from line `number` at byte `offset` on.

    Args:
        file: the input as stored (compressed as its name says).
        name: its name; the suffix decides how it is unpacked.
        max_bytes: limit on one line; a longer one becomes a `record_too_long`.
        number: number of the line at `offset`.
        offset: where to begin; only for a plain `.jsonl`.
    """
    assert offset == 0 or name.endswith(".jsonl"), name
    if name.endswith(".json"):
        yield _whole_file(file, max_bytes)
        return
    if offset:
        file.seek(offset)
    yield from _assemble(pieces_of(file, name), max_bytes, number, offset)


def _whole_file(file: BinaryIO, max_bytes: int) -> Line:
    """A `.json` file is one record, whatever lines it has."""
    data = file.read(max_bytes + 1)
    if not data:
        return Line(1, 0, b"", "input_empty", "0 bytes")
    if len(data) > max_bytes:
        return Line(1, 0, b"", "record_too_long", f"more than {max_bytes} bytes")
    return Line(1, 0, data)


def _assemble(pieces: Iterable[Piece], max_bytes: int, number: int, offset: int) -> Iterator[Line]:
    pending = _Pending(max_bytes, number, offset)
    for piece in pieces:
        if isinstance(piece, Broken):
            yield pending.broken(piece)
        elif isinstance(piece, EndOfMember):
            yield from pending.end(0)
        else:
            *whole, rest = piece.split(b"\n")
            for part in whole:
                pending.add(part)
                yield from pending.end(1)
            pending.add(rest)
    yield from pending.end(0)


class _Pending:
    """The line being assembled; holds at most `max_bytes`."""

    def __init__(self, max_bytes: int, number: int, offset: int):
        self.max_bytes, self.number, self.offset = max_bytes, number, offset
        self.parts: list[bytes] = []
        self.length = 0

    def add(self, part: bytes) -> None:
        self.length += len(part)
        if self.length > self.max_bytes:
            self.parts = []
        else:
            self.parts.append(part)

    def end(self, num_end_bytes: int) -> Iterator[Line]:
        """The finished line, if it is a record; the next one begins."""
        data, length = b"".join(self.parts), self.length
        number, offset = self._next(num_end_bytes)
        if length > self.max_bytes:
            yield Line(number, offset, b"", "record_too_long", f"more than {self.max_bytes} bytes")
        elif data and not data.isspace():
            yield Line(number, offset, data)

    def broken(self, problem: Broken) -> Line:
        """The rest of an input that cannot be read, as one line."""
        number, offset = self._next(0, is_line=True)
        return Line(number, offset, b"", problem.reason, problem.detail)

    def _next(self, num_end_bytes: int, is_line: bool = False) -> tuple[int, int]:
        start = (self.number, self.offset)
        if self.length or num_end_bytes or is_line:
            self.number += 1
        self.offset += self.length + num_end_bytes
        self.parts, self.length = [], 0
        return start


def pieces_of(file: BinaryIO, name: str) -> Iterator[Piece]:
    """The unpacked bytes of an open input in pieces, and what is wrong with it where it cannot be unpacked."""
    if name.endswith(".gz"):
        return _gzip_pieces(file)
    if name.endswith(".zip"):
        return _zip_pieces(file)
    return _plain_pieces(file)


def _plain_pieces(file: BinaryIO) -> Iterator[Piece]:
    chunk = file.read(CHUNK_BYTES)
    if not chunk and not file.tell():
        yield Broken("input_empty", "0 bytes")
    while chunk:
        yield chunk
        chunk = file.read(CHUNK_BYTES)


def _gzip_pieces(file: BinaryIO) -> Iterator[Piece]:
    if not file.read(1):
        yield Broken("input_truncated", "the file is empty; an empty gzip has 20 bytes")
        return
    file.seek(0)
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        yield from _unpack(unpacked)


def _zip_pieces(file: BinaryIO) -> Iterator[Piece]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        yield Broken("input_truncated", f"not a whole zip file: {error}")
        return
    except _DAMAGE as error:
        yield _corrupt(error, "the directory of the zip: ")
        return
    with archive:
        if not archive.infolist():
            yield Broken("input_empty", "the zip has no member")
        for member in sorted(archive.infolist(), key=lambda m: (m.filename, m.header_offset)):
            if member.is_dir() or member.filename.startswith("__MACOSX/"):
                continue
            yield from _member_pieces(archive, member)
            yield EndOfMember()


def _member_pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[Piece]:
    if not member.filename.lower().endswith(MEMBER_SUFFIX):
        yield Broken(
            "not_a_jsonl_member", f"member '{member.filename}', {member.file_size:,} bytes"
        )
        return
    try:
        # By its entry, not by its name: two members may have the same.
        unpacked = archive.open(member)
    except _DAMAGE as error:
        yield _corrupt(error, f"member '{member.filename}': ")
        return
    with unpacked:
        yield from _unpack(cast(zipfile.ZipExtFile, unpacked))


def _unpack(unpacked: gzip.GzipFile | zipfile.ZipExtFile) -> Iterator[Piece]:
    # read1 returns what was unpacked before the damage; read would lose it.
    try:
        while chunk := unpacked.read1(CHUNK_BYTES):
            yield chunk
    except EOFError:
        yield Broken("input_truncated", "the compressed data end too early")
    except _DAMAGE as error:
        if isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error):
            yield EndOfMember()  # what came before was whole, its checksum held: this is something else
        yield _corrupt(error)


def _corrupt(error: Exception, where: str = "") -> Broken:
    """Damage of the data as a piece; an error of the disk or the network is raised again."""
    # EINVAL: an offset before the start of the file. None: a stream that bz2 cannot read.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    return Broken("input_corrupt", f"{where}{error}")


LINE_SCHEMA = pa.schema([*RECORD_FIELDS, pa.field("line", pa.large_string())])
MAX_LINE_BYTES = 64 << 20
TOLD_S = 10.0
"""Seconds between two log lines while inputs are counted."""


@dataclass(frozen=True)
class LineSource(FileSource):
    """A `Source`: the lines of the files that match, in the order of the files' names."""

    max_line_bytes: Annotated[int, Field(ge=1)] = MAX_LINE_BYTES

    suffixes = SUFFIXES
    seekable: ClassVar[tuple[str, ...]] = (".jsonl",)
    """Endings of names of files in which a record is found again by its offset."""

    def records_of(
        self, file: BinaryIO, name: str, number: int = 1, offset: int = 0
    ) -> Iterator[Line]:
        """The records of an open input, from `number` at byte `offset` on; another format overrides this."""
        return read_lines(file, name, self.max_line_bytes, number, offset)

    @property
    def reasons(self) -> Reasons:
        """Why a line is no record."""
        return LINE_REASONS

    def look(self, name: str, limit: int | None = None) -> dict[str, Any]:
        """How many records a file has, and where each shard's worth of them begins: number and offset of a line."""
        marks: list[tuple[int, int]] = []
        num_records = 0
        with self.files.open(name) as file:
            for line in islice(_told(name, self.records_of(file, name)), limit):
                if num_records % self.samples_per_shard == 0:
                    marks.append((line.number, line.offset))
                num_records += 1
        return {"num_records": num_records, "marks": marks}

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard as a table of `LINE_SCHEMA`."""
        rows = [row for part in shard.parts for row in self._read_part(part)]
        return pa.Table.from_pylist(rows, schema=LINE_SCHEMA)

    def _read_part(self, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        name, num_read = part["file"], 0
        with self._from_record(part) as lines:
            for line in islice(lines, part["num_records"]):
                num_read += 1
                yield _row(line, name, part["stem"])
        if num_read != part["num_records"]:
            raise InputError(
                f"'{name}' has changed: {part['num_records']} records were there from the {part['first']:,}th on "
                f"when the shards were planned, now {num_read}; build into another folder"
            )

    @contextmanager
    def _from_record(self, part: Mapping[str, Any]) -> Iterator[Iterator[Line]]:
        """The records of a file from one on: behind a mark in a plain file, else where the last shard ended."""
        name, first, (number, offset) = part["file"], part["first"], part["mark"]
        if name.endswith(self.seekable):
            with self.files.open(name) as file:
                yield islice(self.records_of(file, name, number, offset), part["skip"], None)
            return
        reader = self._open_readers.take(name, first)
        if reader is None:
            file = self.files.open(name)
            reader = SequentialReader(name, file, self.records_of(file, name))
        yield reader.records_from(first)
        self._open_readers.keep(reader)

    @cached_property
    def _open_readers(self) -> OpenReaders[SequentialReader[Line]]:
        return OpenReaders()


def _told(name: str, lines: Iterator[Line]) -> Iterator[Line]:
    """The same, with a log line every `TOLD_S` on how far the file is counted."""
    due = time.monotonic() + TOLD_S
    for num_records, line in enumerate(lines, 1):
        if time.monotonic() >= due:
            log.info("counting=%r line=%d records=%d", name, line.number, num_records)
            due = time.monotonic() + TOLD_S
        yield line


def _row(line: Line, name: str, stem: str) -> dict[str, Any]:
    text = line.decode()
    is_broken = isinstance(text, Broken)
    return {
        "key": f"{stem}-{line.number:07d}",
        "source": name,
        "record": line.number,
        "links": [],
        "drop_reason": text.reason if is_broken else None,
        "drop_detail": text.detail if is_broken else None,
        "line": None if is_broken else text,
    }
