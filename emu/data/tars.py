"""Byte ranges of tars: of local ones by memory map, of others by range requests or from whole copies on a local disk.

With a `ShardCache` the tar of a shard is fetched whole when a sample of it is first read, once for all processes of a
node, and checked against its hash. A training reads a window of shards for a while (`emu/data/dataset.py`), so a cache
that holds a window fetches every tar once per epoch, in one request, where range requests are one per sample.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from schemas.manifest import ShardEntry

BLOCK_BYTES = 1 << 24
POLL_S = 0.1
TRIES = 5
PARTIAL = ".partial"

T = TypeVar("T")
Cut = Callable[[int, int], bytes]
"""Reads the bytes of a tar from a start to a stop."""


class DatasetError(ValueError):
    """A dataset that cannot be read; the message says what to do."""


def cutter(system: Any, path: str, entry: ShardEntry, cache: ShardCache | None) -> Cut:
    """What reads byte ranges of the tar of a shard, which lies at a path of a file system."""
    if isinstance(system, LocalFileSystem):
        with Path(path).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return lambda start, stop: data[start:stop]
    if cache is None:
        return lambda start, stop: system.cat_file(path, start=start, end=stop)
    return lambda start, stop: cache.read(system, path, entry, start, stop)


@dataclass(frozen=True)
class ShardCache:
    """Whole copies of tars in a folder, named by their hashes, up to a number of bytes.

    The folder may be shared by processes and runs. The copies that were read longest ago are removed for new ones. A
    copy counts in full from the start of its transfer; one that a killed process left unfinished is removed.
    """

    folder: Path
    max_bytes: int

    def check(self, windows: Sequence[Sequence[ShardEntry]]) -> None:
        """Raise `DatasetError` unless the tars that are read at a time, those of a window of each corpus, fit."""
        needed = sum(entry.num_bytes for window in windows for entry in window)
        if needed > self.max_bytes:
            raise DatasetError(
                f"the shard cache in {self.folder} may hold {self.max_bytes / 1e9:.3g} GB, the shards that are read "
                f"at a time take {needed / 1e9:.3g} GB and would be fetched again and again; give at least "
                f"--train.shard-cache-gb {needed / 1e9 * 1.01:.3g}"
            )

    def read(self, system: Any, path: str, entry: ShardEntry, start: int, stop: int) -> bytes:
        """Bytes of a tar, from its copy; fetches the tar first if it is not there."""
        for _ in range(TRIES):
            copy = self._copy(system, path, entry)
            # another process may remove it between; then it is fetched again
            with suppress(FileNotFoundError), copy.open("rb") as file:
                os.utime(file.fileno())
                return os.pread(file.fileno(), stop - start, start)
        raise DatasetError(
            f"{path}: its copy in the shard cache {self.folder} was removed {TRIES} times before it was read; "
            "too many processes share the cache, give it more bytes"
        )

    def _copy(self, system: Any, path: str, entry: ShardEntry) -> Path:
        copy = self.folder / f"{entry.sha256}.tar"
        if copy.exists():
            return copy
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_suffix(".lock")):
            if not copy.exists():
                partial = copy.with_suffix(PARTIAL)
                self._reserve(partial, entry.num_bytes)
                try:
                    _fetch(system, path, entry, partial)
                    partial.replace(copy)
                finally:
                    partial.unlink(missing_ok=True)
        return copy

    def _reserve(self, partial: Path, num_bytes: int) -> None:
        """Make an empty file of the size of a tar as soon as there is room, and what room can be made."""
        if num_bytes > self.max_bytes:
            raise DatasetError(
                f"{partial.stem}.tar has {num_bytes:,} bytes, the shard cache may hold {self.max_bytes:,}; "
                "give a larger --train.shard-cache-gb"
            )
        while True:
            with FileLock(self.folder / ".lock"):
                if self._make_room(num_bytes):
                    with partial.open("wb") as file:
                        file.truncate(num_bytes)
                    return
            time.sleep(POLL_S)  # all there is are transfers in progress

    def _make_room(self, num_bytes: int) -> bool:
        self._remove_abandoned()
        copies = sorted(_sizes(self.folder, "*.tar"), key=lambda found: found[1].st_mtime)
        in_transfer = sum(stat.st_size for _, stat in _sizes(self.folder, f"*{PARTIAL}"))
        used = in_transfer + sum(stat.st_size for _, stat in copies)
        for copy, stat in copies:
            if used + num_bytes <= self.max_bytes:
                break
            copy.unlink(missing_ok=True)
            copy.with_suffix(".lock").unlink(missing_ok=True)
            used -= stat.st_size
        return used + num_bytes <= self.max_bytes

    def _remove_abandoned(self) -> None:
        """Remove transfers that no process has the lock of."""
        for partial, _ in _sizes(self.folder, f"*{PARTIAL}"):
            with suppress(Timeout), FileLock(partial.with_suffix(".lock"), timeout=0):
                partial.unlink(missing_ok=True)


def _sizes(folder: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _fetch(system: Any, path: str, entry: ShardEntry, target: Path) -> None:
    digest = hashlib.sha256()
    with system.open(path, "rb", block_size=BLOCK_BYTES) as source, target.open("r+b") as file:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        file.truncate()
    if digest.hexdigest() != entry.sha256:
        raise DatasetError(
            f"{path}: the tar that arrived has {target.stat().st_size:,} bytes and another hash than the manifest "
            f"says ({entry.num_bytes:,} bytes); copy it again or rebuild the dataset"
        )


class Recent(Generic[T]):
    """A thread-safe cache of the most recently used values; makes those that are absent."""

    def __init__(self, capacity: int, make: Callable[[int], T]) -> None:
        self._capacity, self._make = capacity, make
        self._values: OrderedDict[int, T] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, number: int) -> T:
        with self._lock:
            if number not in self._values:
                self._values[number] = self._make(number)
            self._values.move_to_end(number)
            if len(self._values) > self._capacity:
                self._values.popitem(last=False)
            return self._values[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"_capacity": self._capacity, "_make": self._make}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_capacity"], state["_make"])
