"""OBELICS: interleaved documents, from rows of Parquet files to samples of the same form as MMC4's.

A row has two lists of equal length, `images` (links) and `texts`; at each place one of them has a value and the other
is null. So the place of an image in the text is known, and nothing is matched. Stages, each from shard to shard:

| stage    | steps                                                                                          |
|----------|------------------------------------------------------------------------------------------------|
| parse    | a row becomes a document; documents without an image or without a text are dropped             |
| fetch    | images are fetched and normalised; documents of which no image arrived are dropped             |
| assemble | texts and the images that arrived, in the order of the page, become a sample                   |

The sample: texts unchanged, images at their places. Its `meta`:

| field          | meaning                                                                            |
|----------------|------------------------------------------------------------------------------------|
| source, record | name of the input file, without its folder, and row number in it                   |
| image_slot     | for each image segment in order: its number among the images of the row            |
| image_url      | for each image segment: where it was fetched from, or its path in the media folder |
| columns        | every other column of the row (`metadata`, `general_metadata`, …)                  |

Source: OBELICS as released (huggingface.co/datasets/HuggingFaceM4/OBELICS).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import (
    RECORD_FIELDS,
    Pipeline,
    Reason,
    Reasons,
    Rejected,
    Stage,
)
from pipelines.corpora.build import Build
from pipelines.images.normalise import ImageConfig, ImageContent
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.readers.columns import Column
from pipelines.readers.parquet import ParquetSource
from pipelines.transforms.samples import (
    arrived_images,
    assembled_table,
    image_segment,
    origin,
    parsed_table,
)
from schemas.sample import Link, Segment, canonical_json
from schemas.validation import Checked

CORPUS = "obelics"
READER = ParquetSource
"""Reads the input files: one document per row."""
REPORT = Report(title="OBELICS dataset")
CARD = Card(
    title=REPORT.title,
    about="Interleaved documents: texts and images of a web page in their order.",
    sources=(
        "https://huggingface.co/datasets/HuggingFaceM4/OBELICS",
        "https://arxiv.org/abs/2306.16527",
    ),
    licence="The images belong to their owners; the documents of OBELICS are under CC-BY 4.0.",
)
COLUMNS = (
    Column("images", pa.list_(pa.string())),
    Column("texts", pa.list_(pa.large_string())),
)


@dataclass(frozen=True)
class Rules(Checked):
    """What an OBELICS dataset is made by, apart from its inputs: part of its fingerprint."""

    max_images: Annotated[int, Field(ge=1, description="None for no limit")] | None = 256
    """Bounds the memory and time that one document can take; the first ones are fetched."""
    image: ImageConfig = field(default_factory=ImageConfig)


def pipeline(build: Build[ParquetSource], rules: Rules) -> Pipeline:
    """The pipeline from rows of documents to published shards."""
    content = ImageContent(rules.image)
    stages = (
        Stage("parse", (ParsePages(rules.max_images),)),
        build.fetch_stage(content, arrived_images()),
        Stage("assemble", (assemble_pages,)),
    )
    source = replace(build.source, columns=COLUMNS)
    return build.pipeline(CORPUS, stages, asdict(rules), REPORT, CARD, source)


PARSED = pa.schema([*RECORD_FIELDS, ("texts", pa.list_(pa.large_string())), ("meta", pa.string())])


@dataclass(frozen=True)
class ParsePages:
    """Transform: the lists become `texts`, with a null for each image, and links, in the order of the page."""

    max_images: int | None
    reasons: ClassVar[Reasons] = {
        "no_lists": Reason("The row has no list of images or no list of texts."),
        "lists_differ": Reason("The lists of images and texts have different lengths."),
        "place_unclear": Reason("An entry of the lists has both an image and a text, or neither."),
        "no_image_listed": Reason("The document lists no image."),
        "no_text_listed": Reason("The document has no text that is not blank."),
        "over_max_images": Reason(
            "The document has more images than allowed; the first were kept."
        ),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        """The documents; a row that holds none carries the reason."""
        return parsed_table(table, PARSED, self._parse)

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        images, texts = row["images"], row["texts"]
        _check(images, texts)
        meta = {**origin(row), "columns": json.loads(row["extra"] or "{}")}
        links = [Link(slot, url) for slot, url in enumerate(u for u in images if u is not None)]
        return {
            "texts": texts,
            "meta": canonical_json(meta),
            "links": [self._bounded(link).as_row() for link in links],
        }

    def _bounded(self, link: Link) -> Link:
        if self.max_images is None or link.slot < self.max_images:
            return link
        return link.dropped("over_max_images", f"number {link.slot + 1} of the page")


def _check(images: Sequence[str | None] | None, texts: Sequence[str | None] | None) -> None:
    """Raise `Rejected` unless the lists describe a page with a text and an image."""
    if images is None or texts is None:
        raise Rejected("no_lists", "images is null" if images is None else "texts is null")
    if len(images) != len(texts):
        raise Rejected("lists_differ", f"{len(images)} images, {len(texts)} texts")
    for place, (url, text) in enumerate(zip(images, texts, strict=True)):
        if (url is None) == (text is None):
            both = "neither" if url is None else "both"
            raise Rejected("place_unclear", f"place {place} has {both}")
    if all(url is None for url in images):
        raise Rejected("no_image_listed")
    if not any((text or "").strip() for text in texts):
        raise Rejected("no_text_listed")


def assemble_pages(table: pa.Table) -> pa.Table:
    """Transform: `texts` and `images` become the segments of a sample, in the order of the page."""
    return assembled_table(table, "images", _assembled)


def _assembled(row: dict[str, Any]) -> dict[str, Any]:
    images = {image["slot"]: image for image in row["images"]}
    segments: list[Segment] = []
    slot = 0
    for text in row["texts"]:
        if text is not None:
            segments.append(Segment.of_text(text))
            continue
        if slot in images:
            segments.append(image_segment(images[slot]))
        slot += 1
    about = {
        "image_slot": sorted(images),
        "image_url": [row["links"][slot]["url"] for slot in sorted(images)],
    }
    return row | {
        "segments": [segment.as_row() for segment in segments],
        "meta": canonical_json(json.loads(row["meta"]) | about),
    }
