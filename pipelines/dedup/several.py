"""Near duplicates among samples of several images: as many images, each within the radius of the one at its place.

Every image makes its sample a candidate, under each mask of `block_masks`, with the first `MAX_COMPARED` samples that
agree there. Two samples that are near agree at each of their places, so one place with no more samples is enough to
find all that are near; an image that more samples share, such as the logo of a site, costs no more than that.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.candidates import block_masks, first_pairs, mixed
from pipelines.dedup.spill import Bits, Buckets, Spill

MAX_COMPARED = 1024
"""At most 0.3 ms of CPU time per sample: images at other places mostly differ at once."""


class SeveralImages:
    """The hashes of samples with several images, on disk; of a sample all stand in one value of bytes.

    Args:
        folder: for its files.
        rows_per_bucket: bounds the memory.
    """

    def __init__(self, folder: Path, rows_per_bucket: int) -> None:
        self.rows_per_bucket = rows_per_bucket
        self.spill = Spill(folder / "several")
        """Columns: `value`, a hash of all hashes; `row`; `hashes`."""
        self._folder = folder
        self._num_images = 0

    def add(self, column: pa.Array, rows: np.ndarray) -> pa.Array:
        """Keep those of a column of lists of hashes; returns the hash of each sample of one image, null for others."""
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        firsts = pc.list_element(column.filter(pa.array(lengths == 1)), 0)
        hashes = [
            np.array(value, "<u8") for value in column.filter(pa.array(lengths > 1)).to_pylist()
        ]
        if hashes:
            self._num_images += sum(len(one) for one in hashes)
            values = np.concatenate([mixed(one[None]) for one in hashes])
            packed = pa.array([one.tobytes() for one in hashes], pa.large_binary())
            own = {"value": values, "row": rows[lengths > 1], "hashes": packed}
            self.spill.append(pa.table(own))
        places = np.full(len(rows), -1)
        places[lengths == 1] = np.arange(len(firsts))
        return firsts.take(pa.array(places, mask=places < 0))

    def pairs(
        self, radius: int, dropped: Bits
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Row, other row, most bits in which an image differs, of samples that are near and not dropped."""
        for mask in block_masks(radius, self._num_images):
            size = self.rows_per_bucket
            with Buckets(self._folder / "several-band", self._num_images, size) as buckets:
                for chunk in self.spill.chunks(size):
                    left = chunk.filter(pa.array(~dropped.of(chunk["row"].to_numpy())))
                    table, bands = _bands(left, mask)
                    buckets.add_by_hash(table, bands)
                for bucket in buckets.spills:
                    yield from _near_pairs(bucket, radius)


def _bands(samples: pa.Table, mask: np.uint64) -> tuple[pa.Table, np.ndarray]:
    """A row for each image, and its band: of its masked hash, its place and the number of images."""
    hashes = [np.frombuffer(value, "<u8") for value in samples["hashes"].to_pylist()]
    lengths = np.array([len(one) for one in hashes], np.int64)
    owner = np.repeat(np.arange(len(hashes)), lengths)
    place = np.concatenate([np.arange(n) for n in lengths]) if hashes else owner
    values = (np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)) & mask
    columns = [values, place.astype(np.uint64), lengths[owner].astype(np.uint64)]
    bands = mixed(np.stack(columns, axis=1))
    table = samples.select(["row", "hashes"]).take(pa.array(owner))
    return table.append_column("band", pa.array(bands, pa.uint64())), bands


def _near_pairs(bucket: Spill, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for table in bucket.chunks(1 << 60):
        bands, rows = table["band"].to_numpy(), table["row"].to_numpy()
        packed = [np.frombuffer(value, "<u8") for value in table["hashes"].to_pylist()]
        lengths = np.array([len(one) for one in packed], np.int64)
        hashes, starts = np.concatenate(packed), np.cumsum(lengths) - lengths
        order = np.argsort(bands, kind="stable")
        for later, first in first_pairs(bands[order], MAX_COMPARED):
            one, other = order[later], order[first]
            is_equal = lengths[one] == lengths[other]  # but for equal hashes of different bands
            one, other = one[is_equal], other[is_equal]
            distance = np.zeros(len(one), np.int64)
            for place in range(int(lengths.max())):
                is_long = place < lengths[one]
                bits = np.zeros(len(one), np.int64)
                at = starts[one[is_long]] + place, starts[other[is_long]] + place
                bits[is_long] = np.bitwise_count(hashes[at[0]] ^ hashes[at[1]])
                distance = np.maximum(distance, bits)
                is_near = distance <= radius
                one, other, distance = one[is_near], other[is_near], distance[is_near]
                if not len(one):
                    break
            else:
                yield rows[one], rows[other], distance
