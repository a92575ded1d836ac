"""Reads finished datasets: their samples are the records of another pipeline, shard for shard."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.core.pipeline import Reasons, ShardPlan
from pipelines.core.published import read_samples
from pipelines.core.storage import Storage
from schemas.manifest import MANIFEST_FILE, Manifest, ShardEntry, manifest_from_json
from schemas.sample import SAMPLES
from schemas.shard import shard_name

MAX_KEY = 80


@dataclass(frozen=True)
class DatasetSource:
    """A `Source` of the samples of finished datasets, in their order; of several, keys are `<number>-<key>`."""

    roots: tuple[str, ...]
    reasons: Reasons = field(default_factory=dict)

    @property
    def corpus(self) -> str:
        """The corpus of all of them, or `mixed`."""
        found = {manifest_of(root).corpus for root in self.roots}
        return found.pop() if len(found) == 1 else "mixed"

    def plan(self, corpus: str) -> Sequence[ShardPlan]:
        """A shard for every shard."""
        shards = [(n, s) for n, root in enumerate(self.roots) for s in manifest_of(root).shards]
        return [
            ShardPlan(
                shard_name(corpus, number),
                shard.num_samples,
                ({"dataset": n, "shard": shard.as_dict()},),
            )
            for number, (n, shard) in enumerate(shards)
        ]

    def read(self, shard: ShardPlan) -> pa.Table:
        """The samples of a shard, with the tar as their source and their number in it as the record."""
        part = shard.parts[0]
        root = self.roots[part["dataset"]]
        entry = ShardEntry(**part["shard"])
        table = published_table(Storage(root), entry)
        keys = [self._key(part["dataset"], key) for key in table["key"].to_pylist()]
        name = f"{root.rstrip('/').rpartition('/')[2]}/{entry.tar}"
        table = table.set_column(0, "key", pa.array(keys, pa.string()))
        numbers = pa.array(range(1, len(keys) + 1), pa.int64())
        table = table.append_column("source", pa.array([name] * len(keys), pa.string()))
        return table.append_column("record", numbers)

    def fingerprint(self) -> str:
        """The manifests, which hold the hashes of all shards."""
        manifests = [Storage(root).read_bytes(MANIFEST_FILE) for root in self.roots]
        return "manifests:" + hashlib.sha256(b"\0".join(manifests)).hexdigest()

    def _key(self, dataset: int, key: str) -> str:
        if len(self.roots) == 1:
            return key
        named = f"{dataset}-{key}"
        return (
            named
            if len(named) <= MAX_KEY
            else f"{named[:59]}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"
        )


def manifest_of(root: str) -> Manifest:
    """The manifest of a finished dataset; raises `FileNotFoundError` where there is none."""
    return manifest_from_json(Storage(root).read_bytes(MANIFEST_FILE).decode(), root)


def published_table(storage: Storage, shard: ShardEntry) -> pa.Table:
    """The samples of a published shard, in the order of its index."""
    return SAMPLES.table([sample.as_row() for sample in read_samples(storage, shard)])
