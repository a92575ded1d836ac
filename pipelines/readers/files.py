"""Input files: from patterns to names, from names to open files, and which files a build must not read.

A name is what the user wrote, or what a pattern of theirs matched: a path, or any fsspec address. Names are written to
the ledger, so they must be UTF-8. A build that reads its own output would see other inputs when it is resumed;
`refuse_overlap` finds such patterns.
"""

import hashlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, ClassVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from pydantic import Field

from pipelines.core.folder import LOCK
from pipelines.core.pipeline import Reasons, ShardPlan
from pipelines.core.storage import TEMPORARY
from pipelines.core.workspace import PLAN_FILE, WORK
from schemas.manifest import CARD_FILE, MANIFEST_FILE, REPORT_FILE
from schemas.shard import FEATURES, INDEXES, LEDGERS, PARQUET, SHARDS, shard_name
from schemas.validation import Checked

_REMOTE = re.compile(r"^[a-z0-9+.-]+(://|::[^/]*://)", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")
_CLIENTS = {"aiohttp", "botocore", "httpx", "httpx2", "huggingface_hub", "requests"}
LOOKED_AT = ("num_records", "marks")
_STEM_LENGTH = 60  # leaves 20 of the 80 characters of a key for "-", a hash and the record number


class InputError(ValueError):
    """Inputs that do not exist, cannot be read, or have changed; names the pattern or the file."""


@dataclass(frozen=True)
class InputFiles:
    """The files that some patterns match.

    Raises:
        InputError: from every method, where a file is missing, of another format or unreadable.
    """

    patterns: Sequence[str]
    """Paths, globs, or any fsspec address such as `s3://bucket/docs_*.jsonl.zip`."""
    suffixes: tuple[str, ...]
    """Endings of names that the reader can read."""
    base: str = "."
    """Folder that relative patterns are relative to; names in the ledger stay as written."""
    stem_length: int = _STEM_LENGTH
    """Characters of a file's name that stand in the keys of its records."""

    def names(self) -> list[str]:
        """The names of the inputs, sorted, each once."""
        if not self.patterns:
            raise InputError("no input named; give at least one path or pattern")
        found = {name for pattern in self.patterns for name in _matches(pattern, self.base)}
        return sorted(self._checked(name) for name in found)

    def open(self, name: str) -> BinaryIO:
        """A file opened for reading, as stored."""
        with _explained(f"'{name}': cannot be read"):
            filesystem, path = located(name, self.base)
            return filesystem.open(path, "rb")

    def is_local(self, name: str) -> bool:
        """Whether a file is on a disk of this machine, or mounted as one."""
        return isinstance(located(name, self.base)[0], LocalFileSystem)

    def fingerprint(self, hash_contents: bool = False) -> str:
        """A hash of the files' names and versions, after `versions:`; cheap, nothing is read.

        The version of a local file is its size and the time of its last change, of a remote one its size, ETag and
        times, where the store tells them. With `hash_contents` all bytes are read: a hash of names and contents,
        after `contents:`, which is the same after a copy or a `touch`.
        """
        kind, of_file = ("contents", _contents) if hash_contents else ("versions", _version)
        digest = hashlib.sha256()
        for name in self.names():
            with _explained(f"'{name}': cannot be read"):
                digest.update(f"{name}\0{of_file(name, self.base)}\0".encode())
        return f"{kind}:{digest.hexdigest()}"

    def key_stems(self, names: Sequence[str]) -> dict[str, str]:
        """For each name what its records' keys begin with: distinct, `[a-z0-9_-]`, 69 characters at most.

        The stem of the file; where two files would share it, a short hash of the whole name follows.
        """
        stems = {n: _stem(n, self.suffixes)[: self.stem_length] for n in names}
        counts = Counter(stems.values())
        return {
            n: f"{s}-{hashlib.sha256(n.encode()).hexdigest()[:8]}" if counts[s] > 1 else s
            for n, s in stems.items()
        }

    def _checked(self, name: str) -> str:
        if re.search("[\ud800-\udfff]", name):
            raise InputError(
                f"{name!r}: the name is not UTF-8, so no ledger could hold it; rename the file"
            )
        if not name.endswith(self.suffixes):
            raise InputError(f"'{name}': the file name must end in {' or '.join(self.suffixes)}")
        return name


@dataclass(frozen=True)
class FileSource(Checked, ABC):
    """What every `Source` of input files has: options and planning; a format adds `look`, `read` and `reasons`.

    What `look` finds in a file says how many records it has (`num_records`); the other values stand in the parts of its
    shards, and those in `marks` one for each `samples_per_shard` records.

    Raises:
        ConfigError: a bound is not kept.
        InputError: from `files`, `plan`, `fingerprint` and `read`, where inputs are missing or changed, or have other
            columns than are wanted.
    """

    patterns: Sequence[str]
    """Paths, globs, or any fsspec address such as `s3://bucket/docs_*.jsonl.zip` or `hf://datasets/OWNER/NAME/*.parquet`."""
    samples_per_shard: Annotated[int, Field(ge=1)] = 1000
    limit: Annotated[int, Field(ge=1, description="None reads all records")] | None = None
    """Records at most."""
    base: str = "."
    """Folder that relative patterns are relative to; names in the ledger stay as written."""
    hash_inputs: bool = False
    """Recognise the inputs by their contents, which reads them once more, not by size and time."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of names that the format can read."""
    stem_length: ClassVar[int] = _STEM_LENGTH
    """As of `InputFiles`."""

    @property
    def files(self) -> InputFiles:
        """The inputs."""
        return InputFiles(self.patterns, self.suffixes, self.base, self.stem_length)

    def fingerprint(self) -> str:
        """As of `InputFiles`, of contents with `hash_inputs`."""
        return self.files.fingerprint(self.hash_inputs)

    def plan(self, corpus: str) -> list[ShardPlan]:
        """The shards, from a look at one input after the other, as far as `limit` reaches; a shard may cross files."""
        left = math.inf if self.limit is None else self.limit

        def found() -> Iterator[Mapping[str, Any]]:
            nonlocal left
            for name in self.names():
                if left > 0:
                    yield (of_file := self.look(name, None if left == math.inf else int(left)))
                    left -= of_file["num_records"]

        return self.plan_of(corpus, found())

    def inputs(self) -> Sequence[str]:
        """The names of the files; none for a trial, which needs only the first."""
        return self.names() if self.limit is None else ()

    def names(self) -> Sequence[str]:
        """The names of the files, in the order of their records."""
        return self.files.names()

    @property
    @abstractmethod
    def reasons(self) -> Reasons:
        """Every word that `read` may set."""

    @abstractmethod
    def look(self, name: str, limit: int | None = None) -> dict[str, Any]:
        """What the plan needs of a file: at least `num_records`, up to `limit`; streams through it once."""

    @abstractmethod
    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard, as `Source` says."""

    def plan_of(self, corpus: str, found: Iterator[Mapping[str, Any]]) -> list[ShardPlan]:
        """The shards, from what was found in each file; a shard may cross files."""
        names = self.names()
        stems = self.files.key_stems(names)
        size, parts, missing = self.samples_per_shard, [], self.samples_per_shard
        left = math.inf if self.limit is None else self.limit
        shards: list[list[dict[str, Any]]] = []
        for name, of_file in zip(names, found, strict=False):
            about = {word: value for word, value in of_file.items() if word not in LOOKED_AT}
            start, num_records = 0, min(of_file["num_records"], left)
            left -= num_records
            while start < num_records:
                count = int(min(missing, num_records - start))
                part = {"file": name, "stem": stems[name], "first": start + 1, "num_records": count}
                if "marks" in of_file:
                    part |= {"mark": of_file["marks"][start // size], "skip": start % size}
                parts.append(part | about)
                start, missing = start + count, missing - count
                if not missing:
                    shards.append(parts)
                    parts, missing = [], size
        return [
            ShardPlan(
                shard_name(corpus, n), sum(p["num_records"] for p in of_shard), tuple(of_shard)
            )
            for n, of_shard in enumerate([*shards, parts] if parts else shards)
        ]


def located(name: str, base: str) -> tuple[Any, str]:
    """The file system of a file or pattern as written, and its absolute path there."""
    if _REMOTE.match(name):
        return fsspec.core.url_to_fs(name)
    return LocalFileSystem(), str(Path(base, Path(name).expanduser()).absolute())


def as_pattern(pattern: str, base: str) -> str:
    """The absolute pattern of one as written, where what leads to its files is a folder and not a pattern.

    Brackets, stars and question marks in `base` stand for themselves, and so do brackets in the leading folders of the
    pattern that exist.
    """
    filesystem, path = located(pattern, base)
    if not isinstance(filesystem, LocalFileSystem):
        return path
    is_relative = not Path(pattern).expanduser().is_absolute()
    num_fixed = len(Path(base).absolute().parts) if is_relative else 0
    folder, *parts = Path(path).parts
    for number, part in enumerate(parts[:-1]):
        is_folder = number + 1 < num_fixed or not re.search(r"[*?]", part)
        if not is_folder or not Path(folder, part).is_dir():
            break
        folder = str(Path(folder, part))
        parts[number] = _MAGIC.sub(lambda found: f"[{found[0]}]", part)
    return "/" + "/".join(parts)


def refuse_overlap(patterns: Sequence[str], base: str, out: str, corpus: str) -> None:
    """Raise `InputError` for the first pattern that matches what a build of the corpus in `out` writes.

    Whether it exists yet does not matter. Names without a wildcard are accepted, wherever the files are.

    Args:
        patterns: as of `InputFiles`.
        base: folder that relative patterns are relative to.
        out: absolute path or address of the dataset.
        corpus: the shards are named after it.
    """
    for pattern in patterns:
        match = _first_match(pattern, base, out, corpus)
        if match is not None:
            raise InputError(
                f"'{pattern}' would also match '{match}', which this build writes: started again, it "
                "would see other inputs. Name the documents more closely, as in 'FOLDER/*.jsonl.zip', "
                "or choose an output elsewhere"
            )


def _stem(name: str, suffixes: Sequence[str]) -> str:
    stem = re.split(r"[/\\:]", name)[-1].lower()
    for suffix in sorted(suffixes, key=len, reverse=True):
        stem = stem.removesuffix(suffix)
    return re.sub(r"[^a-z0-9_-]", "_", stem)[:_STEM_LENGTH] or "_"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of a disk or a store as `InputError`; clients of stores raise those of the HTTP library below them."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise InputError(f"{what}: {error}") from error


def _matches(pattern: str, base: str) -> list[str]:
    """The names of the files that a pattern stands for."""
    with _explained(f"'{pattern}': cannot be looked up"):
        filesystem, path = located(pattern, base)
        found = [path]
        if not filesystem.exists(path):
            found = sorted(map(str, filesystem.glob(as_pattern(pattern, base))))
        folders = [p for p in found if filesystem.isdir(p)]
    if not found:
        raise InputError(f"'{pattern}': no file matches; relative paths begin at '{base}'")
    if folders:
        raise InputError(
            f"'{pattern}': '{folders[0]}' is a folder; name its files, as in 'FOLDER/*'"
        )
    if found == [path] and _REMOTE.match(pattern):
        return [pattern]
    return [_name(p, pattern, base, filesystem) for p in found]


def _name(found: str, pattern: str, base: str, filesystem: Any) -> str:
    """A found file as the user would name it: relative where the pattern is, with its protocol if remote."""
    if _REMOTE.match(pattern):
        return filesystem.unstrip_protocol(found)
    is_absolute = Path(pattern).expanduser().is_absolute()
    return found if is_absolute else os.path.relpath(found, base)


def _version(name: str, base: str) -> str:
    filesystem, path = located(name, base)
    if isinstance(filesystem, LocalFileSystem):
        status = Path(path).stat()
        return f"{status.st_size}|{status.st_mtime_ns}"
    info = filesystem.info(path)
    marks = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
    return "|".join(str(info.get(mark)) for mark in marks)


def _contents(name: str, base: str) -> str:
    filesystem, path = located(name, base)
    with filesystem.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_match(pattern: str, base: str, out: str, corpus: str) -> str | None:
    try:
        (system, path), (other, root) = located(pattern, base), located(out, base)
        if not _MAGIC.search(pattern) or type(system) is not type(other) or system.exists(path):
            return None
        path = as_pattern(pattern, os.path.realpath(base))
    except (OSError, ValueError, ImportError):
        return None  # it is named where the inputs are looked up, or the output is made
    if isinstance(system, LocalFileSystem):
        path, root = _without_links(path), os.path.realpath(root)
    expression = re.compile(glob_translate(path))
    return next((p for p in _written(root, corpus) if expression.match(p)), None)


def _without_links(pattern: str) -> str:
    """The pattern with its part before the first wildcard as the file system knows it."""
    parts = pattern.split("/")
    first = next(n for n, part in enumerate(parts) if _MAGIC.search(part))
    folder = os.path.realpath("/".join(parts[:first]) or "/")
    return "/".join([folder.rstrip("/"), *parts[first:]])


_FOLDERS = (
    *((SHARDS, "tar"), (INDEXES, "parquet"), (LEDGERS, "parquet")),
    *((FEATURES, "arrow"), (PARQUET, "parquet")),
)


def _written(root: str, corpus: str) -> Iterator[str]:
    """Every kind of file and folder that a build makes, once; the folders above the output too."""
    yield root
    yield from (
        f"{root}/{name}" for name in (MANIFEST_FILE, REPORT_FILE, CARD_FILE, PLAN_FILE, LOCK)
    )
    shard, level = shard_name(corpus, 0), f"{WORK}/01-stage"
    for folder, suffix in _FOLDERS:
        yield from (f"{root}/{folder}", f"{root}/{folder}/{shard}.{suffix}")
    yield from (f"{root}/{p}" for p in (WORK, TEMPORARY, f"{TEMPORARY}/{shard}.tar.1.0123abcd"))
    yield from (f"{root}/{level}", f"{root}/{level}/{shard}.arrow")
    yield from map(str, PurePosixPath(root).parents)
