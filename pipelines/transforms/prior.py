"""What a published dataset already knows of its links, for a run that tries the failures again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.storage import Storage
from pipelines.core.tables import read_parquet
from pipelines.download.reasons import REASONS
from schemas.shard import INDEXES, LEDGERS, SHARDS, decode_members
from schemas.tables import DROPPED, INDEX, KEPT, LEDGER

RETRIABLE = tuple(sorted(word for word, reason in REASONS.items() if reason.retriable))


@dataclass(frozen=True)
class Known:
    """What is known of one link: its image, or a reason that will not change."""

    image: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    detail: str | None = None


def has_retriable(ledger: pa.Table) -> bool:
    """True if a link of the ledger failed for a reason that another run may not meet."""
    return bool(pc.any(pc.is_in(ledger["reason"], value_set=pa.array(RETRIABLE))).as_py())


@dataclass(frozen=True)
class Prior:
    """A published dataset, as a memory of what became of its links.

    Known are the links that were kept (their image is cut out of the tar, byte for byte) and those that failed
    for good. Unknown, so to be fetched again: those that failed for a retriable reason, and those that
    arrived but were left out afterwards, since their bytes were not kept.
    """

    root: str

    def known(self, shard: str) -> dict[tuple[str, int], Known]:
        """What is known of a shard's links, by key and slot."""
        storage = Storage(self.root)
        ledger = read_parquet(storage, f"{LEDGERS}/{shard}.parquet", LEDGER)
        links = ledger.filter(pc.is_valid(ledger["slot"]))
        failed = {
            (row["key"], row["slot"]): Known(reason=row["reason"], detail=row["detail"])
            for row in links.filter(pc.equal(links["status"], DROPPED)).to_pylist()
            if row["reason"] in REASONS and not REASONS[row["reason"]].retriable
        }
        kept = links.filter(pc.equal(links["status"], KEPT))
        wanted = set(zip(kept["key"].to_pylist(), kept["slot"].to_pylist(), strict=True))
        images = self._images(storage, shard)
        assert wanted == set(images), f"{shard}: ledger and index name other images"
        return failed | images

    def _images(self, storage: Storage, shard: str) -> dict[tuple[str, int], Known]:
        index = read_parquet(storage, f"{INDEXES}/{shard}.parquet", INDEX)
        found: dict[tuple[str, int], Known] = {}
        with storage.open(f"{SHARDS}/{shard}.tar") as tar:
            for row in index.select(["key", "members"]).to_pylist():
                members: dict[str, bytes] = {}
                for place in row["members"]:
                    tar.seek(place["offset"])
                    members[place["name"]] = tar.read(place["size"])
                sample = decode_members(row["key"], members, f"{shard}.tar")
                slots = sample.meta.get("image_slot") or range(len(sample.images))
                for slot, image in zip(slots, sample.images, strict=True):
                    names = ("format", "width", "height")
                    sizes = {name: getattr(image, name) for name in names}
                    found[sample.key, slot] = Known(image={"data": image.image, **sizes})
        return found
