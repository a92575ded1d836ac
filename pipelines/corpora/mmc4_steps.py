"""The steps that are MMC4's own: lines to documents with links, documents with images to samples."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipelines.core.filter import Filter
from pipelines.core.stage import RECORD_FIELDS
from pipelines.corpora.mmc4_document import Document, DocumentError, parse_document
from pipelines.corpora.mmc4_match import MatchRules, choose_images, match_images
from schemas.links import Link, link_from_row
from schemas.sample import SEGMENT_TYPE, Segment, canonical_json

CORPUS = "mmc4"

RECORD_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "no_image_wanted": "No image is similar enough to a sentence; nothing was fetched.",
        "no_image_arrived": "None of the images that were to be fetched arrived.",
        "no_image_left": "Images arrived, but none fits a sentence.",
    }
)
"""Why a document is left out: reason -> one sentence for a person."""

DOCUMENT_FIELDS = (
    pa.field("url", pa.string()),
    pa.field("texts", pa.list_(pa.large_string())),
    pa.field("similarity", pa.list_(pa.list_(pa.float64()))),
)
SAMPLE_FIELDS = (
    pa.field("corpus", pa.string()),
    pa.field("segments", pa.list_(SEGMENT_TYPE)),
    pa.field("meta", pa.string()),
)
PARSED = pa.schema([*RECORD_FIELDS, *DOCUMENT_FIELDS])
MATCHED = pa.schema([*RECORD_FIELDS, *SAMPLE_FIELDS])


@dataclass(frozen=True)
class ParseDocuments:
    """Transform: the column `line` becomes `url`, `texts`, `similarity` and `links`, one link an image."""

    rules: MatchRules

    def __call__(self, table: pa.Table) -> pa.Table:
        """The documents; a line that is none carries its reason."""
        rows = [self._row(row) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=PARSED.with_metadata(table.schema.metadata))

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        line = row.pop("line")
        if row["drop_reason"] is not None:
            return row
        try:
            document = parse_document(line)
        except DocumentError as error:
            return row | {"drop_reason": error.reason, "drop_detail": error.detail}
        return row | {
            "url": document.url,
            "texts": document.texts,
            "similarity": document.similarity,
            "links": [link.as_row() for link in self._links(document)],
        }

    def _links(self, document: Document) -> list[Link]:
        outcomes = choose_images(document.similarity, document.texts, self.rules)
        links = [Link(slot, url) for slot, url in enumerate(document.image_urls)]
        return [
            link.dropped(outcome.reason, outcome.detail) if outcome.reason else link
            for link, outcome in zip(links, outcomes, strict=True)
        ]


@dataclass(frozen=True)
class MatchDocuments:
    """Transform: `texts`, `similarity` and `images` become the `segments` and `meta` of a sample."""

    rules: MatchRules

    def __call__(self, table: pa.Table) -> pa.Table:
        """The samples; images left out carry their reason in `links`."""
        rows = [self._row(row) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=MATCHED.with_metadata(table.schema.metadata))

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        images = {image["slot"]: image for image in row["images"]}
        outcomes = match_images(row["similarity"], row["texts"], sorted(images), self.rules)
        links = [link_from_row(link) for link in row["links"]]
        row["links"] = [
            link.dropped(outcomes[link.slot].reason or "", outcomes[link.slot].detail).as_row()
            if link.slot in outcomes and outcomes[link.slot].reason
            else link.as_row()
            for link in links
        ]
        placed = {o.text_index: slot for slot, o in outcomes.items() if o.reason is None}
        slots = [placed[index] for index in sorted(placed)]
        segments = list(_segments(row["texts"], placed, images))
        similarity = [outcomes[slot].similarity for slot in slots]
        meta = {
            "url": row["url"],
            "source": re.split(r"[/\\]", row["source"])[-1],
            "record": row["record"],
            "image_slot": slots,
            "image_url": [links[slot].url for slot in slots],
            "matched_text_index": sorted(placed),
            "similarity": similarity,
            "scores": _scores(similarity),
        }
        return row | {"corpus": CORPUS, "segments": segments, "meta": canonical_json(meta)}


def _segments(
    texts: list[str], placed: dict[int, int], images: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    segments: list[Segment] = []
    for index, text in enumerate(texts):
        if index in placed:
            image = images[placed[index]]
            size = (image["width"], image["height"])
            segments.append(Segment.of_image(image["data"], image["format"], *size))
        segments.append(Segment.of_text(text))
    return [s.as_row() for s in segments]


def _scores(similarity: list[float]) -> dict[str, float]:
    if not similarity:
        return {}
    mean = sum(similarity) / len(similarity)
    return {"min_similarity": min(similarity), "mean_similarity": mean}


def living_links() -> Filter:
    """A filter that keeps documents with a link to fetch."""

    def reasons(table: pa.Table) -> pa.Array:
        alive = (any(k["reason"] is None for k in links) for links in table["links"].to_pylist())
        return pa.array([None if a else "no_image_wanted" for a in alive], pa.string())

    return Filter("living_links", reasons)


def arrived_images() -> Filter:
    """A filter that keeps documents of which an image arrived."""

    def reasons(table: pa.Table) -> pa.Array:
        lengths = table["images"].combine_chunks().value_lengths().to_pylist()
        return pa.array([None if n else "no_image_arrived" for n in lengths], pa.string())

    return Filter("arrived_images", reasons)
