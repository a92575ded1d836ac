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
    block_masks,
    first_pairs,
    hash_pairs,
)
from pipelines.dedup.several import SeveralImages
from pipelines.dedup.spill import Bits, Buckets, Spill
from pipelines.dedup.text_signatures import TextSignatures

EXACT = ("url", "sample", "image", "text")
NEAR_IMAGE, NEAR_TEXT = "near_image", "near_text"
KINDS = (*EXACT, NEAR_IMAGE, NEAR_TEXT)
"""The kinds of duplicates, in the order in which they are looked for."""
ROWS = 1_000_000
"""Rows of a bucket, about; 100 MB."""
NO_KEYS = pa.array([], pa.string())


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
        self._several = SeveralImages(self._folder, rows_per_bucket)
        self._texts = TextSignatures(self._folder / "signatures")
        self._shards: list[tuple[str | None, int, int]] = []
        self.num_rows = 0

    def add(self, shard: str | None, keys: pa.Array, columns: Mapping[str, pa.Array]) -> None:
        """The next shard: keys, and for each kind a column of uint64, or of lists of them (the images of a sample), or,
        for texts, of 512 bytes; null has no such thing.

        Of rows of no shard (null), other rows are duplicates, but they are none themselves.
        """
        rows = np.arange(self.num_rows, self.num_rows + len(keys))
        self._shards.append((shard, self.num_rows, len(keys)))
        self.num_rows += len(keys)
        self._keys.append(pa.table({"key": keys}))
        for kind in self.kinds:
            column = columns[kind]
            if pa.types.is_list(column.type):
                column = self._several.add(column, rows)
            is_there = column.is_valid()
            values, own = column.filter(is_there), rows[is_there.to_numpy(zero_copy_only=False)]
            if kind == NEAR_TEXT:
                values = pa.array(self._texts.append(values, own), pa.uint64())
            self._columns[kind].append(pa.table({"value": values, "row": own}))

    def drops(self) -> Iterator[tuple[str, list[Drop]]]:
        """The duplicates of every shard that has some, in order; ends with nothing left on disk."""
        self._texts.close()
        dropped = Bits(self.num_rows)
        for kind in self.kinds:
            self._equal(kind, self._columns[kind], dropped)
            if kind == NEAR_IMAGE:
                self._equal(kind, self._several.spill, dropped)
                self._near(kind, self._image_pairs(dropped), dropped)
            if kind == NEAR_TEXT:
                self._near(kind, self._text_pairs(dropped), dropped)
        yield from self._by_shard()
        self._temporary.cleanup()

    def _equal(self, kind: str, column: Spill, dropped: Bits) -> None:
        """Drop rows whose value has occurred before."""
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
        for one, other, distance in self._several.pairs(self.radius, dropped):
            yield _pairs(one, other, distance)

    def _text_pairs(self, dropped: Bits) -> Iterator[pa.Table]:
        """Pairs whose signatures agree in the share `similarity` of their values; each is compared once."""
        texts, size = self._texts, self.rows_per_bucket
        is_left = Bits(texts.count)
        for first in range(0, texts.count, size):
            rows = texts.rows(first, size)
            is_left.set(first + np.flatnonzero(~dropped.of(rows)))
        # Smaller buckets, since a row may agree with up to 16 earlier ones in each band.
        with Buckets(self._folder / "texts", texts.count, size // 4 or 1) as candidates:
            for band in range(NUM_BANDS):
                for later, earlier in self._agreeing(band, is_left):
                    table = pa.table({"later": later, "earlier": earlier})
                    candidates.add_by_range(table, later, texts.count)
            for bucket in candidates.spills:
                for chunk in bucket.chunks(size):
                    later, earlier = _unique(_numpy(chunk, "later"), _numpy(chunk, "earlier"))
                    agree = texts.similarity(later, earlier)
                    near = agree >= self.similarity
                    rows = texts.rows_of(later[near]), texts.rows_of(earlier[near])
                    yield _pairs(*rows, agree[near])

    def _agreeing(self, band: int, is_left: Bits) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of signatures and of earlier ones that agree in a band."""
        texts, size = self._texts, self.rows_per_bucket
        with Buckets(self._folder / "band", texts.count, size) as buckets:
            for first in range(0, texts.count, size):
                values = texts.band(band, first, size)
                numbers = np.arange(first, first + len(values))
                left = is_left.of(numbers)
                values, numbers = values[left], numbers[left]
                buckets.add_by_hash(pa.table({"value": values, "number": numbers}), values)
            for bucket in buckets.spills:
                values, numbers = _whole(bucket, "value", "number")
                order = np.argsort(values, kind="stable")
                numbers = numbers[order]
                for later, first in first_pairs(values[order]):
                    yield numbers[later], numbers[first]

    def _near(self, kind: str, pairs: Iterator[pa.Table], dropped: Bits) -> None:
        """Drop rows that are near an earlier one that stays; the pairs are sorted by the later of their rows."""
        found_pairs = Spill(self._folder / "found")
        for table in pairs:
            found_pairs.append(table)
        num = max(self.num_rows, found_pairs.num_rows)
        with Buckets(self._folder / "pairs", num, self.rows_per_bucket) as buckets:
            for table in found_pairs.chunks(self.rows_per_bucket):
                buckets.add_by_range(table, _numpy(table, "later"), self.num_rows)
            found_pairs.delete()
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


def _unique(later: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, each once, sorted."""
    order = np.lexsort((earlier, later))
    later, earlier = later[order], earlier[order]
    is_new = np.ones(len(later), bool)
    is_new[1:] = (later[1:] != later[:-1]) | (earlier[1:] != earlier[:-1])
    return later[is_new], earlier[is_new]


def _pairs(one: np.ndarray, other: np.ndarray, nearness: np.ndarray) -> pa.Table:
    later, earlier = np.maximum(one, other), np.minimum(one, other)
    return pa.table({"later": later, "earlier": earlier, "nearness": nearness.astype(float)})


def _sorted_rows(bucket: Spill, size: int) -> Iterator[dict]:
    """The rows of a bucket by number; a bucket has at most a row for each number of its range."""
    tables = list(bucket.chunks(size))
    if tables:
        for batch in pa.concat_tables(tables).sort_by("row").to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()
