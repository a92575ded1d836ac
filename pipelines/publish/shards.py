"""The sink of every corpus: records that carry a sample become a webdataset tar and its index."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.core.storage import Storage, write_parquet
from schemas.manifest import ShardEntry
from schemas.sample import SAMPLES, Sample, sample_from_row
from schemas.shard import INDEXES, SHARDS, write_tar
from schemas.tables import INDEX

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class ShardSink:
    """A `Sink`: writes `shards/<name>.tar`, then `index/<name>.parquet`, each whole or not at all."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        """Write the columns of `SAMPLES` as a shard; the hash is taken from the bytes as they are written."""

        def write(file: BinaryIO) -> tuple[list[dict[str, Any]], _Counted]:
            counted = _Counted(file)
            return write_tar(cast(BinaryIO, counted), _samples(table), shard), counted

        written = storage.commit(f"{SHARDS}/{shard}.tar", write)
        assert written is not None, shard
        rows, counted = written
        write_parquet(storage, f"{INDEXES}/{shard}.parquet", INDEX.table(rows), INDEX)
        return ShardEntry(
            name=shard,
            num_samples=len(rows),
            num_images=sum(row["num_images"] for row in rows),
            num_bytes=counted.num_bytes,
            sha256=counted.digest.hexdigest(),
        )


class _Counted:
    """A file that is written to, with the number of its bytes and their hash so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.num_bytes += len(data)
        self.digest.update(data)
        return self.file.write(data)


def _samples(table: pa.Table) -> Iterator[Sample]:
    columns = table.select([c.name for c in SAMPLES.columns])
    for batch in columns.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from map(sample_from_row, batch.to_pylist())
