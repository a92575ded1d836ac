"""Published shards: the sink that writes the tar and the index of a shard.

A change of this module changes the fingerprint of every dataset, so what only the report needs is not here.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipelines.core.storage import Storage, write_parquet
from pipelines.publish.sample_table import write_table
from schemas.manifest import ShardEntry
from schemas.shard import INDEXES, SHARDS
from schemas.tables import INDEX


@dataclass(frozen=True)
class ShardSink:
    """A `Sink`: writes `shards/<name>.tar`, then `index/<name>.parquet`, each atomically."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        """Write the columns of `SAMPLES` as a shard; its hash is computed while the bytes are written."""

        def write(file: BinaryIO) -> tuple[list[dict[str, Any]], HashedFile]:
            hashed = HashedFile(file)
            return write_table(cast(BinaryIO, hashed), table, shard), hashed

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
