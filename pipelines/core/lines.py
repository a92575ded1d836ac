"""Lines of text files as a source of records: `.jsonl`, `.jsonl.gz`, `.jsonl.zip`, local or remote.

A record's table has the reserved columns and `line` (large_string): the text, or null for a line that
could not be read and carries its `drop_reason` from the start.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipelines.core.line_reader import SUFFIXES, Broken, Line, read_lines
from pipelines.core.stage import RECORD_FIELDS, ShardPlan
from schemas.shard import shard_name

LINE_SCHEMA = pa.schema([*RECORD_FIELDS, pa.field("line", pa.large_string())])
MAX_LINE_BYTES = 64 << 20
MAX_PER_SHARD, MAX_LIMIT = 100_000, 10**12
_STEM_LENGTH = 60  # leaves 20 of the 80 characters of a key for "-", a hash and the line number
_REMOTE = re.compile(r"^[a-z0-9+.-]+(://|::[^/]*://)", re.IGNORECASE)


class InputError(ValueError):
    """Inputs that are not there, cannot be read, or have changed; names the pattern or the file."""


@dataclass(frozen=True)
class LineSource:
    """A `Source`: the lines of the files that match, in the order of the files' names.

    Raises:
        InputError: from `files`, `plan`, `fingerprint` and `read`, where inputs are missing or changed.
    """

    patterns: Sequence[str]
    """Paths, globs, or any fsspec address such as `s3://bucket/docs_*.jsonl.zip`."""
    samples_per_shard: int = 1000
    limit: int | None = None
    """Records at most."""
    base: str = "."
    """Folder that relative patterns are relative to; names in the ledger stay as written."""
    max_line_bytes: int = MAX_LINE_BYTES

    def __post_init__(self) -> None:
        if not 1 <= self.samples_per_shard <= MAX_PER_SHARD:
            raise InputError(
                f"samples_per_shard={self.samples_per_shard}: at least 1, at most {MAX_PER_SHARD:,} "
                "(a shard is held in memory; 1,000 is a good size)"
            )
        if self.limit is not None and not 1 <= self.limit <= MAX_LIMIT:
            raise InputError(
                f"limit={self.limit}: at least 1, at most {MAX_LIMIT:,}; leave it out to take all records"
            )

    def files(self) -> list[str]:
        """The names of the inputs, sorted, each once."""
        if not self.patterns:
            raise InputError("no input named; give at least one path or pattern")
        return sorted({n for p in self.patterns for n in _matches(p, self.base)})

    def plan(self, corpus: str) -> list[ShardPlan]:
        """The shards, from streaming through all inputs once; a shard may cross files."""
        places = islice(self._places(), self.limit)
        shards: list[ShardPlan] = []
        while parts := _parts(islice(places, self.samples_per_shard)):
            num_records = sum(p["num_records"] for p in parts)
            shards.append(ShardPlan(shard_name(corpus, len(shards)), num_records, tuple(parts)))
        return shards

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard as a table of `LINE_SCHEMA`."""
        rows = [row for part in shard.parts for row in self._read_part(part)]
        return pa.Table.from_pylist(rows, schema=LINE_SCHEMA)

    def fingerprint(self) -> str:
        """Hash of the files' names and contents; of name, size and version where they are remote."""
        digest = hashlib.sha256()
        for name in self.files():
            digest.update(f"{name}\0{_version(name, self.base)}\0".encode())
        return digest.hexdigest()

    def _places(self) -> Iterator[tuple[str, str, Line]]:
        names = self.files()
        stems = key_stems(names)
        for name in names:
            with _open(name, self.base) as file:
                for line in read_lines(file, name, self.max_line_bytes):
                    yield name, stems[name], line

    def _read_part(self, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        name, first = part["file"], part["first_line"]
        start = (first, part["offset"]) if name.endswith(".jsonl") else (1, 0)
        with _open(name, self.base) as file:
            lines = read_lines(file, name, self.max_line_bytes, *start)
            wanted = (line for line in lines if line.number >= first)
            num_read = 0
            for line in islice(wanted, part["num_records"]):
                num_read += 1
                yield _row(line, name, part["stem"])
        if num_read != part["num_records"]:
            raise InputError(
                f"'{name}' has changed: {part['num_records']} records were there from line {first} "
                f"when the shards were planned, now {num_read}; build into another folder"
            )


def key_stems(names: Sequence[str]) -> dict[str, str]:
    """For each file name what its records' keys begin with: distinct, `[a-z0-9_-]`, 69 characters at most.

    The stem of the file; where two files would share it, a short hash of the whole name follows.
    """
    stems = {n: _stem(n) for n in names}
    counts = Counter(stems.values())
    return {
        n: f"{s}-{hashlib.sha256(n.encode()).hexdigest()[:8]}" if counts[s] > 1 else s
        for n, s in stems.items()
    }


def located(name: str, base: str) -> tuple[Any, str]:
    """The file system of a file or pattern as written, and its absolute path there."""
    if _REMOTE.match(name):
        return fsspec.core.url_to_fs(name)
    return LocalFileSystem(), str(Path(base, Path(name).expanduser()).absolute())


def _stem(name: str) -> str:
    stem = re.split(r"[/\\:]", name)[-1].lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        stem = stem.removesuffix(suffix)
    return re.sub(r"[^a-z0-9_-]", "_", stem)[:_STEM_LENGTH] or "_"


def _parts(places: Iterator[tuple[str, str, Line]]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for name, stem, line in places:
        if not parts or parts[-1]["file"] != name:
            place = {"first_line": line.number, "offset": line.offset, "num_records": 0}
            parts.append({"file": name, "stem": stem} | place)
        parts[-1]["num_records"] += 1
    return parts


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


def _matches(pattern: str, base: str) -> list[str]:
    """The names of the files that a pattern stands for."""
    try:
        filesystem, path = located(pattern, base)
        found = [path] if filesystem.exists(path) else sorted(map(str, filesystem.glob(path)))
        folders = [p for p in found if filesystem.isdir(p)]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"'{pattern}': cannot be looked up: {error}") from error
    if not found:
        raise InputError(f"'{pattern}': no file matches; relative paths begin at '{base}'")
    if folders:
        raise InputError(
            f"'{pattern}': '{folders[0]}' is a folder; name its files, as in 'FOLDER/*'"
        )
    if found == [path] and _REMOTE.match(pattern):
        return [_checked(pattern)]
    return [_checked(_name(p, pattern, base, filesystem)) for p in found]


def _name(found: str, pattern: str, base: str, filesystem: Any) -> str:
    """A found file as the user would name it: relative where the pattern is, with its protocol if remote."""
    if _REMOTE.match(pattern):
        return filesystem.unstrip_protocol(found)
    is_absolute = Path(pattern).expanduser().is_absolute()
    return found if is_absolute else os.path.relpath(found, base)


def _checked(name: str) -> str:
    if re.search("[\ud800-\udfff]", name):
        raise InputError(
            f"{name!r}: the name is not UTF-8, so no ledger could hold it; rename the file"
        )
    if not name.endswith(SUFFIXES):
        raise InputError(f"'{name}': the name ends in none of {', '.join(SUFFIXES)}")
    return name


def _open(name: str, base: str) -> BinaryIO:
    try:
        filesystem, path = located(name, base)
        return filesystem.open(path, "rb")
    except OSError as error:
        raise InputError(f"'{name}': cannot be read: {error}") from error


def _version(name: str, base: str) -> str:
    filesystem, path = located(name, base)
    if not isinstance(filesystem, LocalFileSystem):
        info = filesystem.info(path)
        marks = [str(info.get(k)) for k in ("size", "ETag", "etag", "md5Hash", "mtime", "created")]
        return "|".join(marks)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"'{name}': cannot be read: {error}") from error
