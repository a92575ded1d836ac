"""A published dataset: its samples by index, and as an endless, shuffled, resumable stream that all ranks share.

`Dataset` checks the manifest and reads single samples, by byte ranges of tars (`emu/data/tars.py`): local ones are
memory-mapped; on other fsspec file systems one range request fetches the members of a sample, or a cache has whole
copies. The index of a shard is read when it is first needed and cached, so memory does not grow with the dataset.

`ShardReader` orders the samples. Position n of the stream is sample `n % N` of epoch `n // N`, where N is the size
of the dataset. The order of an epoch is arithmetic, so any position is found in constant time and the state of a
reader is two numbers:

1. the shards are permuted, differently in each epoch;
2. `window` consecutive shards form a window; the samples of a window are permuted.

A dataset of up to `window` shards (64: about 64,000 samples) is thus shuffled as a whole. In a larger one a window
limits how many shards are open at once, so that reads stay local on disks and object stores; a sample still has
other neighbours in each epoch. Memory: one number per shard.

`Permutation` is a Feistel network over the numbers below a power of four, restricted to 0..size-1 by cycle walking
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It serves as a repeatable shuffle, not as a
cipher.

Ranks do not appear here: in a step, rank r of W reads its share of the positions of the global batch
(`emu/data/batches.py`), so the same state resumes any number of ranks.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from emu.data.tars import Cut, Recent, ShardCache, cutter
from emu.data.tars import DatasetError as DatasetError
from schemas.adopted import decode_adopted
from schemas.manifest import MANIFEST_FILE, Manifest, ShardEntry, manifest_from_json
from schemas.sample import Sample
from schemas.shard import INDEXES, decode_members, read_members
from schemas.table_spec import check_table
from schemas.tables import INDEX
from schemas.validation import SchemaError

ROUNDS = 4
MASK = (1 << 64) - 1


class Permutation:
    """A pseudo-random bijection of 0..size-1: `permutation[i]` in constant time and memory."""

    def __init__(self, size: int, *seed: int | str) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} numbers; give at least 1")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        digest = derived_bytes("permutation", *seed)
        self._round_keys = [int.from_bytes(digest[i * 8 : i * 8 + 8]) for i in range(ROUNDS)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of a permutation of {self.size}")
        value = self._network(index)
        while value >= self.size:  # less than 4 times on average: the domain is below 4 * size
            value = self._network(value)
        return value

    def _network(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._half_mask)
        return left << self._half_bits | right


def derived_bytes(*parts: int | str) -> bytes:
    """64 pseudo-random bytes that follow from the parts, the same on every machine and in every version."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest()


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that follows from the parts."""
    return int.from_bytes(derived_bytes(*parts)[:8]) >> 1


def _mixed(value: int) -> int:
    """The finaliser of splitmix64: every input bit flips about half of the output bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@dataclass(frozen=True)
class OpenShard:
    """An open shard: its index, and a function that reads a byte range of its tar."""

    entry: ShardEntry
    index: pa.Table
    cut: Cut


class Dataset:
    """The samples of a published dataset, by shard and row.

    Raises:
        DatasetError: if the manifest is missing (the build has not finished), of another version or without
            samples, or if a tar or an index differs from the manifest.
    """

    def __init__(
        self, address: str | Path, num_open: int = 128, cache: ShardCache | None = None
    ) -> None:
        self.address = str(address)
        self._fs, self._root = fsspec.core.url_to_fs(self.address)
        self.manifest = self._read_manifest()
        self.entries = self.manifest.shards
        if not self.manifest.num_samples:
            raise DatasetError(
                f"{self.address}: the dataset is complete but holds no samples; its ledger says why "
                f"each of its {self.manifest.records.total} records was dropped"
            )
        self._cache = cache
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
        """True on a local file system, where files can be memory-mapped."""
        return isinstance(self._fs, LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The address of a file of the dataset, for its file system."""
        return "/".join([self._root.rstrip("/"), *parts])

    def read(self, path: str) -> bytes:
        """The contents of a file."""
        return self._fs.cat_file(path)

    def key(self, shard: int, row: int) -> str:
        """The key of the sample in a row of a shard; reads the index alone."""
        return self._open[shard].index["key"][row].as_py()

    def sample(self, shard: int, row: int) -> Sample:
        """The sample in a row of a shard (shards in the order of the manifest); `SchemaError` for a damaged one."""
        opened = self._open[shard]
        members = opened.index["members"][row].as_py()
        start = min(m["offset"] for m in members)
        stop = max(m["offset"] + m["size"] for m in members)
        near = [m | {"offset": m["offset"] - start} for m in members]
        key = opened.index["key"][row].as_py()
        decode = decode_members if opened.entry.path is None else decode_adopted
        return decode(key, read_members(opened.cut(start, stop), near), f"{opened.entry.name}.tar")

    def _read_manifest(self) -> Manifest:
        path = self.path(MANIFEST_FILE)
        try:
            text = self.read(path).decode()
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self.address}: no {MANIFEST_FILE}: not a dataset, or its build has not finished; check the "
                "path, or run the build again with the same --out to resume it"
            ) from error
        try:
            return manifest_from_json(text, path)
        except SchemaError as error:
            raise DatasetError(str(error)) from error

    def _open_shard(self, number: int) -> OpenShard:
        entry = self.entries[number]
        index = self._read_index(entry)
        system, path = self._tar(entry)
        try:
            size = system.size(path)
        except FileNotFoundError as error:
            raise DatasetError(f"{path}: the manifest names this tar, but it is missing") from error
        if size != entry.num_bytes:
            raise DatasetError(
                f"{path}: {size} bytes, the manifest says {entry.num_bytes}; copy it again or "
                "rebuild the dataset"
            )
        return OpenShard(entry, index, cutter(system, path, entry, self._cache))

    def _tar(self, entry: ShardEntry) -> tuple[Any, str]:
        """The file system that holds the tar of a shard, and its path there."""
        if entry.path is not None and ("://" in entry.path or Path(entry.path).is_absolute()):
            return fsspec.core.url_to_fs(entry.path)
        return self._fs, self.path(entry.tar)

    def has_local_tar(self, entry: ShardEntry) -> bool:
        """Whether the tar of a shard is a file of this machine."""
        return isinstance(self._tar(entry)[0], LocalFileSystem)

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


WINDOW = 64


@dataclass(frozen=True)
class ReaderState:
    """The position of a reader, and what it reads: `load` refuses another dataset or seed."""

    epoch: int
    position: int
    seed: int
    shuffle: bool
    window: int
    dataset: str
    """`Dataset.digest`."""


@dataclass(frozen=True)
class Visit:
    """A sample in an epoch, with its shard."""

    sample: Sample
    shard: int
    epoch: int


@dataclass(frozen=True)
class Place:
    """Where a sample stands: its key, shard and row, and the epoch of its position."""

    key: str
    shard: int
    row: int
    epoch: int
    entry: int
    """Index of the row among those that are read of its shard."""


class ShardReader:
    """Iterates over the samples of a published dataset without end; `state` / `load` are exact.

    `rows` limits it to some rows of each shard; a row may stand there more than once. With a `cache` the tars of a
    dataset that is not local are copied whole. Raises `DatasetError` as `Dataset` does.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        seed: int,
        shuffle: bool = True,
        window: int = WINDOW,
        rows: Rows[Rows[int] | np.ndarray] | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        self.dataset = Dataset(dataset_dir, num_open=2 * window, cache=cache)
        self.seed, self.shuffle, self.window = seed, shuffle, window
        self.rows = rows or [range(entry.num_samples) for entry in self.dataset.entries]
        """The rows that are read of each shard."""
        self._sizes = tuple(map(len, self.rows))
        self._num_samples = sum(self._sizes)
        self._orders = Recent(4, self._make_order)
        self.position = 0
        """Index of the next sample, counted over all epochs."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._num_samples

    def __iter__(self) -> Iterator[Sample]:
        while True:
            visit = self.visit(self.position)
            self.position += 1
            yield visit.sample

    def visit(self, position: int) -> Visit:
        """The sample at a position of the endless stream; does not move the reader."""
        place = self.place(position)
        return Visit(self.dataset.sample(place.shard, place.row), place.shard, place.epoch)

    def place(self, position: int) -> Place:
        """Where the sample at a position stands, and its key; the sample itself is not read."""
        epoch, index = divmod(position, len(self))
        shard, entry = self.locate(epoch, index)
        row = int(self.rows[shard][entry])
        return Place(self.dataset.key(shard, row), shard, row, epoch, entry)

    def locate(self, epoch: int, index: int) -> tuple[int, int]:
        """Shard of the sample at an index of an epoch, and its index among the rows that are read of it."""
        order = self._orders[epoch]
        window = bisect_right(order.window_starts, index) - 1
        start = order.window_starts[window]
        inside = index - start
        if self.shuffle:
            size = order.window_starts[window + 1] - start
            inside = Permutation(size, self.seed, "samples", epoch, window)[inside]
        shuffled = start + inside
        slot = bisect_right(order.shard_starts, shuffled) - 1
        return order.shards[slot], shuffled - order.shard_starts[slot]

    def largest_window(self) -> list[ShardEntry]:
        """The largest shards whose tars are not local, as many as are read at a time."""
        far = [entry for entry in self.dataset.entries if not self.dataset.has_local_tar(entry)]
        far.sort(key=lambda entry: -entry.num_bytes)
        return far[: self.window] if self.shuffle else far[:1]

    def state(self) -> dict[str, Any]:
        """The position as a JSON object of constant size."""
        epoch, position = divmod(self.position, len(self))
        return asdict(
            ReaderState(epoch, position, self.seed, self.shuffle, self.window, self.dataset.digest)
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a saved position; raises `DatasetError` if it belongs to another stream."""
        now = self.state()
        for name in ("dataset", "seed", "shuffle", "window"):
            if state[name] != now[name]:
                raise DatasetError(
                    f"{self.dataset.address}: the saved position is for {name} {state[name]!r}, "
                    f"here it is {now[name]!r}; the order of the samples would differ"
                )
        self.position = state["epoch"] * len(self) + state["position"]

    def _make_order(self, epoch: int) -> EpochOrder:
        shards = [number for number, size in enumerate(self._sizes) if size]
        if self.shuffle:
            permutation = Permutation(len(shards), self.seed, "shards", epoch)
            shards = [shards[permutation[index]] for index in range(len(shards))]
        ends = list(accumulate(self._sizes[shard] for shard in shards))
        starts = (0, *ends[:-1])
        return EpochOrder(tuple(shards), starts, (*starts[:: self.window], ends[-1]))


@dataclass(frozen=True)
class EpochOrder:
    """The shards in the order of an epoch, and the first index of each shard and window."""

    shards: tuple[int, ...]
    shard_starts: tuple[int, ...]
    window_starts: tuple[int, ...]
    """One more than there are windows: the last is the size of the epoch."""
