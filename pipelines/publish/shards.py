"""Published shards: the sink that writes the tar and the index of a shard.

A change of this module changes the fingerprint of every dataset, so what only the report needs is not here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.core.storage import Storage, write_parquet
from schemas.manifest import ShardEntry
from schemas.sample import SAMPLES, Sample, unchecked_sample
from schemas.shard import INDEXES, SHARDS, write_tar
from schemas.tables import INDEX

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class ShardSink:
    """A `Sink`: writes `shards/<name>.tar`, then `index/<name>.parquet`, each atomically."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        """Write the columns of `SAMPLES` as a shard; its hash is computed while the bytes are written."""

        def write(file: BinaryIO) -> tuple[list[dict[str, Any]], HashedFile]:
            hashed = HashedFile(file)
            return write_tar(cast(BinaryIO, hashed), _samples(table), shard), hashed

        written = storage.commit(f"{SHARDS}/{shard}.tar", write)
        assert written is not None, shard
        rows, hashed = written
        write_parquet(storage, f"{INDEXES}/{shard}.parquet", INDEX.table(rows), INDEX)
        return ShardEntry(
            name=shard,
            num_samples=len(rows),
            num_images=sum(row["num_images"] for row in rows),
            num_bytes=hashed.num_bytes,
            sha256=hashed.digest.hexdigest(),
        )


class HashedFile:
    """A file opened for writing that counts and hashes its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write, count and hash."""
        self.num_bytes += len(data)
        self.digest.update(data)
        return self.file.write(data)


def _samples(table: pa.Table) -> Iterator[Sample]:
    """The samples, which are checked when they are written."""
    columns = table.select([c.name for c in SAMPLES.columns])
    for batch in columns.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from map(unchecked_sample, batch.to_pylist())
