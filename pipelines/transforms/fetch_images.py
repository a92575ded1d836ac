"""What a published dataset already knows of its links, for a run that tries the failures again.

Living links of a shard into images: fetched, checked, brought to size, in the column `images`.

The column holds, for each record, one `IMAGE_TYPE` for each link that arrived, in the order of the links:

| field         | type         | meaning                                                     |
|---------------|--------------|-------------------------------------------------------------|
| slot          | int32        | number of the link in its record                            |
| data          | large_binary | encoded bytes                                               |
| format        | string       | `jpg`, `png` or `webp`                                      |
| width, height | int32        | pixels                                                      |
| source_width, source_height | int32 | pixels before; null for one taken from a published shard |

A link that did not arrive carries its reason, a word of `pipelines.download.reasons.REASONS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import shard_of
from pipelines.core.storage import Storage, read_parquet
from pipelines.download.fetcher import FetchConfig, Fetched, Fetcher
from pipelines.download.reasons import REASONS
from pipelines.images.normalise import ImageConfig, NormalisedImage, normalise_image
from schemas.sample import LINK_TYPE, Link, link_from_row
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


IMAGE_TYPE = pa.struct(
    [
        ("slot", pa.int32()),
        ("data", pa.large_binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
    ]
)


class FetchImages:
    """Transform with one fetcher for as long as its worker lives: fills `images`, marks dead links.

    A link that stands several times in a shard is fetched once.

    Args:
        fetch: limits and manners of fetching.
        image: the size and quality that images are brought to.
        prior: a published dataset; what it knows of a link is not asked for again.
    """

    def __init__(self, fetch: FetchConfig, image: ImageConfig, prior: Prior | None = None) -> None:
        self.image = image
        self.prior = prior
        self.fetcher = Fetcher(fetch)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with `images`, and with reasons in `links`."""
        records = [[link_from_row(k) for k in links] for links in table["links"].to_pylist()]
        keys = table["key"].to_pylist()
        known = self.prior.known(shard_of(table)) if self.prior else {}
        fetched = self._fetch(
            link
            for key, links in zip(keys, records, strict=True)
            for link in links
            if link.is_alive and (key, link.slot) not in known
        )
        images, links = [], []
        for key, record in zip(keys, records, strict=True):
            settled = [_settle(link, known.get((key, link.slot)), fetched) for link in record]
            images.append([image for _, image in settled if image is not None])
            links.append([link.as_row() for link, _ in settled])
        place = table.schema.get_field_index("links")
        marked = table.set_column(place, "links", pa.array(links, pa.list_(LINK_TYPE)))
        return marked.append_column("images", pa.array(images, pa.list_(IMAGE_TYPE)))

    def close(self) -> None:
        """Ends the connections."""
        self.fetcher.close()

    def _fetch(self, links: Any) -> dict[str, Fetched[NormalisedImage]]:
        urls = list(dict.fromkeys(link.url or "" for link in links))
        found = self.fetcher.fetch_many(urls, lambda _, body: normalise_image(body, self.image))
        return dict(zip(urls, found, strict=True))


def _settle(
    link: Link, known: Known | None, fetched: dict[str, Fetched[NormalisedImage]]
) -> tuple[Link, dict[str, Any] | None]:
    """The link as it now stands, and its image if it has one."""
    if not link.is_alive:
        return link, None
    if known is not None:
        if known.reason is not None:
            return link.dropped(known.reason, known.detail), None
        return link, {"slot": link.slot, **known.image}
    result = fetched[link.url or ""]
    if result.reason is not None:
        return link.dropped(result.reason, result.detail), None
    assert result.value is not None, link
    names = ("data", "format", "width", "height", "source_width", "source_height")
    return link, {"slot": link.slot, **{name: getattr(result.value, name) for name in names}}
