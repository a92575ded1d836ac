"""A published dataset opened for reading: its manifest checked, any sample by shard and row.

Local tars are memory-mapped; on any other fsspec address one range read fetches the members of a sample.
The index of a shard is read when the shard is first needed and kept for a while, so memory does not
grow with the dataset.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from schemas.manifest import MANIFEST_FILE, Manifest, ShardEntry, manifest_from_json
from schemas.sample import Sample
from schemas.shard import INDEXES, SHARDS, decode_members, read_members
from schemas.tables import INDEX
from schemas.validation import SchemaError, check_table

T = TypeVar("T")


class DatasetError(ValueError):
    """A dataset that cannot be read as it is; the message says what to do."""


@dataclass(frozen=True)
class OpenShard:
    """One shard at hand: its index, and a way to cut bytes out of its tar."""

    entry: ShardEntry
    index: pa.Table
    cut: Callable[[int, int], bytes]


class Dataset:
    """The samples of a published dataset, by number of the shard and row in it.

    Raises `DatasetError` where the manifest is missing (the build did not finish), of another version,
    without samples, or where a tar or an index is not what the manifest says.
    """

    def __init__(self, address: str | Path, num_open: int = 128) -> None:
        self.address = str(address)
        self._fs, self._root = fsspec.core.url_to_fs(self.address)
        self.manifest = self._read_manifest()
        self.entries = self.manifest.shards
        if not self.manifest.num_samples:
            raise DatasetError(
                f"{self.address}: the dataset is complete but holds no samples; its ledger says why "
                f"each of its {self.manifest.records.total} records was dropped"
            )
        self._open = Recent(num_open, self._open_shard)

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def digest(self) -> str:
        """A hash of the names and contents of all shards."""
        lines = "\n".join(f"{entry.name} {entry.sha256}" for entry in self.entries)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def is_local(self) -> bool:
        """True on a file system of this machine, where files can be memory-mapped."""
        return isinstance(self._fs, LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The address of a file of the dataset, for its file system."""
        return "/".join([self._root.rstrip("/"), *parts])

    def read(self, path: str) -> bytes:
        """The whole of a file."""
        return self._fs.cat_file(path)

    def sample(self, shard: int, row: int) -> Sample:
        """The sample in a row of a shard (numbered as in the manifest)."""
        opened = self._open[shard]
        members = opened.index["members"][row].as_py()
        start = min(m["offset"] for m in members)
        stop = max(m["offset"] + m["size"] for m in members)
        near = [m | {"offset": m["offset"] - start} for m in members]
        key = opened.index["key"][row].as_py()
        return decode_members(
            key, read_members(opened.cut(start, stop), near), f"{opened.entry.name}.tar"
        )

    def _read_manifest(self) -> Manifest:
        path = self.path(MANIFEST_FILE)
        try:
            text = self.read(path).decode()
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self.address}: no {MANIFEST_FILE}: not a dataset (is the path right?), or its build has not "
                "finished; run the build again with the same --out, it goes on where it stopped"
            ) from error
        try:
            return manifest_from_json(text, path)
        except SchemaError as error:
            raise DatasetError(str(error)) from error

    def _open_shard(self, number: int) -> OpenShard:
        entry = self.entries[number]
        index = self._read_index(entry)
        path = self.path(SHARDS, f"{entry.name}.tar")
        try:
            size = self._fs.size(path)
        except FileNotFoundError as error:
            raise DatasetError(f"{path}: the manifest names this tar, but it is missing") from error
        if size != entry.num_bytes:
            raise DatasetError(
                f"{path}: {size} bytes, the manifest says {entry.num_bytes}; copy it again or "
                "rebuild the dataset"
            )
        return OpenShard(entry, index, self._cutter(path))

    def _cutter(self, path: str) -> Callable[[int, int], bytes]:
        if not self.is_local:
            return lambda start, stop: self._fs.cat_file(path, start=start, end=stop)
        with Path(path).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return lambda start, stop: data[start:stop]

    def _read_index(self, entry: ShardEntry) -> pa.Table:
        path = self.path(INDEXES, f"{entry.name}.parquet")
        try:
            data = io.BytesIO(self.read(path))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}: the manifest names this shard, but not its index"
            ) from error
        try:
            table = check_table(pq.read_table(data), INDEX)
        except (SchemaError, pa.ArrowInvalid) as error:
            raise DatasetError(f"{path}: {error}") from error
        if len(table) != entry.num_samples:
            raise DatasetError(
                f"{path}: {len(table)} rows, the manifest says {entry.num_samples} samples"
            )
        return table.select(["key", "members"]).combine_chunks()


class Recent(Generic[T]):
    """Makes values by number and keeps the most recently used ones; safe to use from threads."""

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
