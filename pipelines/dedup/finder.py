"""Which rows of a dataset are duplicates of an earlier one, from their signatures alone.

The kinds of duplicates are looked for one after the other, exact ones first, each among the rows that are left. Of rows
that are equal the first stays; a row that is near others is dropped if one of those before it stays. So a row is
dropped
only for one that is kept, and which ones are kept follows from the order of the rows and nothing else. A chain of rows,
each near the next, does not end in one row, as it would if being near were taken to be transitive.

Signatures, bands and pairs are on disk (`spill.py`); in memory are a bucket and a bit for each row.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.dedup.candidates import (
    NUM_BANDS,
    NUM_PERMUTATIONS,
    band_values,
    block_masks,
    first_pairs,
    hash_pairs,
    mixed,
)
from pipelines.dedup.spill import Bits, Buckets, Spill

EXACT = ("url", "sample", "image", "text")
NEAR_IMAGE, NEAR_TEXT = "near_image", "near_text"
KINDS = (*EXACT, NEAR_IMAGE, NEAR_TEXT)
"""The kinds of duplicates, in the order in which they are looked for."""
ROWS = 1_000_000
"""Rows of a bucket, about; 100 MB."""
NO_KEYS = pa.array([], pa.string())
_VERIFIED = 50_000  # pairs of texts at a time: 50 MB of signatures


@dataclass(frozen=True)
class Drop:
    """Duplicates of one shard: index in the shard, key of the row that is kept, kind, and how near it is."""

    row: int
    kept: str
    kind: str
    nearness: float
    """Bits that differ (near_image), estimated similarity (near_text), 0 for exact ones."""


class DuplicateFinder:
    """Takes the signatures of all shards in order, then gives the duplicates of each.

    Args:
        kinds: some of `KINDS`.
        radius: bits that may differ between images.
        similarity: Jaccard similarity that texts must have at least.
        rows_per_bucket: bounds the memory.
        folder: where files are written; null takes the system's folder for temporary files.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        radius: int = 4,
        similarity: float = 0.8,
        rows_per_bucket: int = ROWS,
        folder: str | None = None,
    ) -> None:
        self.kinds = [kind for kind in KINDS if kind in kinds]
        self.radius, self.similarity, self.rows_per_bucket = radius, similarity, rows_per_bucket
        self._temporary = tempfile.TemporaryDirectory(prefix="emu-dedup-", dir=folder)
        self._folder = Path(self._temporary.name)
        self._columns = {kind: Spill(self._folder / kind) for kind in self.kinds}
        self._keys = Spill(self._folder / "keys")
        self._drops = Spill(self._folder / "drops")
        self._signatures = (self._folder / "signatures").open("wb")
        self._num_signatures = 0
        self._shards: list[tuple[str | None, int, int]] = []
        self.num_rows = 0

    def add(self, shard: str | None, keys: pa.Array, columns: Mapping[str, pa.Array]) -> None:
        """The next shard: keys, and for each kind a column of uint64 or, for texts, of 512 bytes; null has no such
        thing.

        Of rows of no shard (null), other rows are duplicates, but they are none themselves.
        """
        rows = np.arange(self.num_rows, self.num_rows + len(keys))
        self._shards.append((shard, self.num_rows, len(keys)))
        self.num_rows += len(keys)
        self._keys.append(pa.table({"key": keys}))
        for kind in self.kinds:
            column = columns[kind]
            is_there = column.is_valid()
            values = column.filter(is_there)
            own = {"row": pa.array(rows[is_there.to_numpy(zero_copy_only=False)])}
            if kind == NEAR_TEXT:
                values, own["signature"] = self._stored(values)
            self._columns[kind].append(pa.table({"value": values, **own}))

    def _stored(self, signatures: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Write signatures; their hashes and their numbers in the file."""
        matrix = as_matrix(signatures)
        self._signatures.write(matrix.tobytes())
        numbers = np.arange(self._num_signatures, self._num_signatures + len(matrix))
        self._num_signatures += len(matrix)
        return pa.array(mixed(matrix), pa.uint64()), pa.array(numbers)

    def drops(self) -> Iterator[tuple[str, list[Drop]]]:
        """The duplicates of every shard that has some, in order; ends with nothing left on disk."""
        self._signatures.close()
        dropped = Bits(self.num_rows)
        for kind in self.kinds:
            self._equal(kind, dropped)
            if kind == NEAR_IMAGE:
                self._near(kind, self._image_pairs(dropped), dropped)
            if kind == NEAR_TEXT:
                self._near(kind, self._text_pairs(dropped), dropped)
        yield from self._by_shard()
        self._temporary.cleanup()

    def _equal(self, kind: str, dropped: Bits) -> None:
        """Drop rows whose value has occurred before."""
        column = self._columns[kind]
        with Buckets(self._folder / "equal", column.num_rows, self.rows_per_bucket) as buckets:
            for chunk in column.chunks(self.rows_per_bucket):
                buckets.add_by_hash(chunk.select(["value", "row"]), _numpy(chunk, "value"))
            for bucket in buckets.spills:
                self._equal_in(kind, bucket, dropped)

    def _equal_in(self, kind: str, bucket: Spill, dropped: Bits) -> None:
        values, first = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for chunk in bucket.chunks(self.rows_per_bucket):
            more, rows = _left(chunk, dropped)
            # earlier rows come first, and `unique` finds the first
            values, index = np.unique(np.concatenate([values, more]), return_index=True)
            first = np.concatenate([first, rows])[index]
        for chunk in bucket.chunks(self.rows_per_bucket):
            more, rows = _left(chunk, dropped)
            kept = first[np.searchsorted(values, more)]
            again = kept != rows
            self._drop(kind, rows[again], kept[again], np.zeros(int(again.sum())), dropped)

    def _image_pairs(self, dropped: Bits) -> Iterator[pa.Table]:
        column = self._columns[NEAR_IMAGE]
        for mask in block_masks(self.radius, column.num_rows):
            with Buckets(self._folder / "band", column.num_rows, self.rows_per_bucket) as buckets:
                for chunk in column.chunks(self.rows_per_bucket):
                    left = chunk.filter(pa.array(~dropped.of(_numpy(chunk, "row"))))
                    buckets.add_by_hash(left, _numpy(left, "value") & mask)
                for bucket in buckets.spills:
                    hashes, rows = _whole(bucket, "value", "row")
                    order = np.argsort(hashes & mask, kind="stable")
                    hashes, rows = hashes[order], rows[order]
                    for one, other, distance in hash_pairs(hashes & mask, hashes, self.radius):
                        yield _pairs(rows[one], rows[other], distance)

    def _text_pairs(self, dropped: Bits) -> Iterator[pa.Table]:
        column = self._columns[NEAR_TEXT]
        for band in range(NUM_BANDS):
            with Buckets(self._folder / "band", column.num_rows, self.rows_per_bucket) as buckets:
                for chunk in column.chunks(self.rows_per_bucket // 8 or 1):
                    numbers = _numpy(chunk, "signature")
                    values = band_values(self._read(numbers[0], len(numbers)), band)
                    chunk = chunk.set_column(0, "value", pa.array(values, pa.uint64()))
                    is_left = ~dropped.of(_numpy(chunk, "row"))
                    buckets.add_by_hash(chunk.filter(pa.array(is_left)), values[is_left])
                for bucket in buckets.spills:
                    values, rows, numbers = _whole(bucket, "value", "row", "signature")
                    order = np.argsort(values, kind="stable")
                    yield from self._verified(values[order], rows[order], numbers[order])

    def _verified(
        self, values: np.ndarray, rows: np.ndarray, numbers: np.ndarray
    ) -> Iterator[pa.Table]:
        """Pairs whose signatures agree in the share `similarity` of their values."""
        for later, first in first_pairs(values):
            for start in range(0, len(later), _VERIFIED):
                one, other = (part[start : start + _VERIFIED] for part in (later, first))
                agree = (self._gathered(numbers[one]) == self._gathered(numbers[other])).mean(
                    axis=1
                )
                is_near = agree >= self.similarity
                if is_near.any():
                    yield _pairs(rows[one[is_near]], rows[other[is_near]], agree[is_near])

    def _near(self, kind: str, pairs: Iterator[pa.Table], dropped: Bits) -> None:
        """Drop rows that are near an earlier one that stays; the pairs are sorted by the later of their rows."""
        with Buckets(self._folder / "pairs", self.num_rows, self.rows_per_bucket) as buckets:
            for table in pairs:
                buckets.add_by_range(table, _numpy(table, "later"), self.num_rows)
            for bucket in buckets.spills:
                later, earlier, nearness = _whole(bucket, "later", "earlier", "nearness")
                order = np.lexsort((earlier, later))
                found: dict[int, tuple[int, float]] = {}
                was_dropped = dropped.of(earlier[order]).tolist()
                for row, before, near, is_gone in zip(
                    later[order].tolist(),
                    earlier[order].tolist(),
                    nearness[order].tolist(),
                    was_dropped,
                    strict=True,
                ):
                    if row not in found and not is_gone and before not in found:
                        found[row] = (before, near)
                rows = np.fromiter(found, np.int64, len(found))
                kept = np.array([k for k, _ in found.values()], np.int64)
                self._drop(kind, rows, kept, np.array([n for _, n in found.values()]), dropped)

    def _drop(
        self, kind: str, rows: np.ndarray, kept: np.ndarray, nearness: np.ndarray, dropped: Bits
    ) -> None:
        dropped.set(rows)
        kinds = np.full(len(rows), KINDS.index(kind), np.int8)
        self._drops.append(
            pa.table({"row": rows, "kept": kept, "kind": kinds, "nearness": nearness.astype(float)})
        )

    def _by_shard(self) -> Iterator[tuple[str, list[Drop]]]:
        size = self.rows_per_bucket
        with (
            Buckets(self._folder / "kept", self.num_rows, size) as by_kept,
            Buckets(self._folder / "row", self.num_rows, size) as by_row,
        ):
            for chunk in self._drops.chunks(size):
                by_kept.add_by_range(chunk, _numpy(chunk, "kept"), self.num_rows)
            for named in self._with_keys(by_kept):
                by_row.add_by_range(named, _numpy(named, "row"), self.num_rows)
            yield from self._grouped(by_row)

    def _with_keys(self, by_kept: Buckets) -> Iterator[pa.Table]:
        """The drops with the key of the row that is kept."""
        chunks, held = self._keys.chunks(self.rows_per_bucket), pa.table({"key": NO_KEYS})
        width = by_kept.width(self.num_rows)
        for number, bucket in enumerate(by_kept.spills):
            while held.num_rows < width and (more := next(chunks, None)) is not None:
                held = pa.concat_tables([held, more])
            for chunk in bucket.chunks(self.rows_per_bucket):
                kept = _numpy(chunk, "kept") - number * width
                yield chunk.append_column("key", held["key"].combine_chunks().take(pa.array(kept)))
            held = held.slice(width)

    def _grouped(self, by_row: Buckets) -> Iterator[tuple[str, list[Drop]]]:
        shards = iter(self._shards)
        shard, first, num = next(shards, (None, 0, 0))
        held: list[Drop] = []
        for bucket in by_row.spills:
            for row in _sorted_rows(bucket, self.rows_per_bucket):
                while row["row"] >= first + num:
                    if shard is not None and held:
                        yield shard, held
                    held = []
                    shard, first, num = next(shards)
                held.append(
                    Drop(row["row"] - first, row["key"], KINDS[row["kind"]], row["nearness"])
                )
        if shard is not None and held:
            yield shard, held

    def _read(self, first: int, count: int) -> np.ndarray:
        """Signatures that follow each other, `[count, 128]`."""
        path = self._folder / "signatures"
        size = NUM_PERMUTATIONS * 4
        values = np.fromfile(path, "<u4", count * NUM_PERMUTATIONS, offset=int(first) * size)
        return values.reshape(-1, NUM_PERMUTATIONS)

    def _gathered(self, numbers: np.ndarray) -> np.ndarray:
        """Signatures by number; mapped anew each time, so that no more of the file stays in memory."""
        return np.memmap(self._folder / "signatures", "<u4", "r").reshape(-1, NUM_PERMUTATIONS)[
            numbers
        ]


def as_matrix(signatures: pa.Array) -> np.ndarray:
    """MinHash signatures `[N, 128]` from a column of 512 bytes each."""
    joined = b"".join(signatures.to_pylist())
    return np.frombuffer(joined, "<u4").reshape(-1, NUM_PERMUTATIONS)


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def _left(chunk: pa.Table, dropped: Bits) -> tuple[np.ndarray, np.ndarray]:
    """Values and rows that were not dropped."""
    rows = _numpy(chunk, "row")
    is_left = ~dropped.of(rows)
    return _numpy(chunk, "value")[is_left], rows[is_left]


def _whole(bucket: Spill, *names: str) -> list[np.ndarray]:
    """Columns of a bucket in memory."""
    chunks = list(bucket.chunks(1 << 60))
    if not chunks:
        return [np.zeros(0, np.uint64 if name == "value" else np.int64) for name in names]
    return [_numpy(chunks[0], name) for name in names]


def _pairs(one: np.ndarray, other: np.ndarray, nearness: np.ndarray) -> pa.Table:
    later, earlier = np.maximum(one, other), np.minimum(one, other)
    return pa.table({"later": later, "earlier": earlier, "nearness": nearness.astype(float)})


def _sorted_rows(bucket: Spill, size: int) -> Iterator[dict]:
    """The rows of a bucket by number; a bucket has at most a row for each number of its range."""
    tables = list(bucket.chunks(size))
    if tables:
        for batch in pa.concat_tables(tables).sort_by("row").to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()
