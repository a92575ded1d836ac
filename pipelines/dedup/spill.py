"""Tables on disk, larger than memory: appended to, read in chunks, and split into buckets by a hash or a range.

What is joined is brought into the same bucket; a bucket fits into memory, whatever the number of rows.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

MAX_BUCKETS = 512  # open files at a time
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Spill:
    """A table on disk (Arrow IPC stream) that is written once, then read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        self._writer: pa.RecordBatchStreamWriter | None = None

    def append(self, table: pa.Table) -> None:
        """Add rows; all have the columns of the first."""
        if not table.num_rows:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self.path), table.schema)
        self._writer.write_table(table.combine_chunks())
        self.num_rows += table.num_rows

    def chunks(self, num_rows: int) -> Iterator[pa.Table]:
        """The rows in order, in tables of about `num_rows`; may be called again."""
        self.close()
        if not self.path.exists():
            return
        with pa.OSFile(str(self.path), "rb") as file, pa.ipc.open_stream(file) as reader:
            held: list[pa.RecordBatch] = []
            for batch in reader:
                held.append(batch)
                if sum(b.num_rows for b in held) >= num_rows:
                    yield pa.Table.from_batches(held).combine_chunks()
                    held = []
            if held:
                yield pa.Table.from_batches(held).combine_chunks()

    def close(self) -> None:
        """End writing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def delete(self) -> None:
        """Free the disk."""
        self.close()
        self.path.unlink(missing_ok=True)


class Buckets:
    """A table on disk, split into files.

    Args:
        folder: of the files; made.
        num_rows: how many rows are expected.
        rows_per_bucket: about how many rows a bucket should have.
    """

    def __init__(self, folder: Path, num_rows: int, rows_per_bucket: int) -> None:
        folder.mkdir()
        self._folder = folder
        self.count = min(MAX_BUCKETS, max(1, -(-num_rows // rows_per_bucket)))
        self.spills = [Spill(folder / f"{n:04d}") for n in range(self.count)]

    def __enter__(self) -> "Buckets":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for spill in self.spills:
            spill.delete()
        self._folder.rmdir()

    def add_by_hash(self, table: pa.Table, hashes: np.ndarray) -> None:
        """Rows of equal hashes (uint64) come into the same bucket, in their order.

        Of a hash any bits may be 0 in all rows, as in a band of one.
        """
        # A product has no bit of its factor below it, so those at the top are brought down first.
        mixed = (hashes ^ (hashes >> np.uint64(32))) * _ODD
        self._add(table, (mixed >> np.uint64(40)) % np.uint64(self.count))

    def add_by_range(self, table: pa.Table, values: np.ndarray, num_values: int) -> None:
        """Rows of values from 0 to `num_values` - 1 come into buckets that are ranges of them, in order."""
        self._add(table, values // self.width(num_values))

    def width(self, num_values: int) -> int:
        """How many values are in the range of a bucket."""
        return max(1, -(-num_values // self.count))

    def _add(self, table: pa.Table, numbers: np.ndarray) -> None:
        if self.count == 1:
            self.spills[0].append(table)
            return
        numbers = numbers.astype(np.uint16)  # numpy sorts 16 bits by radix
        order = np.argsort(numbers, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=self.count))])
        ordered = table.take(pa.array(order))
        for number, spill in enumerate(self.spills):
            spill.append(ordered.slice(starts[number], starts[number + 1] - starts[number]))


class Bits:
    """A bit for each of `num` rows, all 0 at first: 125 MB for a billion."""

    def __init__(self, num: int) -> None:
        self._octets = np.zeros(-(-num // 8), np.uint8)

    def set(self, rows: np.ndarray) -> None:
        """Set the bits of rows."""
        np.bitwise_or.at(self._octets, rows >> 3, (1 << (rows & 7)).astype(np.uint8))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The bits of rows, as booleans."""
        return (self._octets[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 == 1
