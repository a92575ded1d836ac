"""The largest groups of duplicates of a dataset, from its ledgers: what stayed, and how many were dropped for it.

The ledger names the sample that stayed at the beginning of the detail of each duplicate, `of KEY`. Memory does not grow
with the dataset: above `MAX_GROUPS` groups half of them are forgotten, the smallest so far.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.storage import Storage, read_parquet
from schemas.manifest import Manifest
from schemas.shard import LEDGERS
from schemas.tables import LEDGER

STAGE = "dedup"
MAX_GROUPS = 4096
_EXAMPLES = 6
_COLUMNS = ("key", "slot", "stage", "reason", "detail")


@dataclass
class Group:
    """A sample that stayed, as the ledger names it, and what was dropped for it."""

    kept: str
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    """Keys of the first dropped samples."""

    @property
    def size(self) -> int:
        """How many samples were dropped."""
        return self.reasons.total()


def largest_groups(storage: Storage, manifest: Manifest, num: int = 12) -> list[Group]:
    """The groups from which most samples were dropped; none where the dataset has no stage that drops duplicates."""
    groups: dict[str, Group] = {}
    for key, kept, reason in _drops(storage, manifest) if STAGE in manifest.stages else ():
        group = groups.setdefault(kept, Group(kept))
        group.reasons[reason] += 1
        if len(group.examples) < _EXAMPLES:
            group.examples.append(key)
        if len(groups) > MAX_GROUPS:
            groups = {g.kept: g for g in _ranked(groups)[: MAX_GROUPS // 2]}
    return _ranked(groups)[:num]


def _ranked(groups: dict[str, Group]) -> list[Group]:
    return sorted(groups.values(), key=lambda g: (-g.size, g.kept))


def _drops(storage: Storage, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Key of a duplicate, the sample that stayed, reason."""
    for shard in manifest.shards:
        path = f"{LEDGERS}/{shard.name}.parquet"
        ledger: pa.Table = read_parquet(storage, path, LEDGER, _COLUMNS)
        is_drop = pc.and_(pc.is_null(ledger["slot"]), pc.equal(ledger["stage"], STAGE))
        for row in ledger.filter(is_drop).to_pylist():
            if row["reason"] is not None and row["detail"]:
                kept = row["detail"].removeprefix("of ").partition(";")[0]
                yield row["key"], kept, row["reason"]
