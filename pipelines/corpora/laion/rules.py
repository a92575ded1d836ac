"""LAION: images with their captions, from Parquet metadata with links to published pairs.

It reads LAION-400M, LAION-2B-en (plain, joined, aesthetic cuts), Re-LAION and LAION-COCO. Stages, each from shard to
shard:

| stage | steps                                                                                            |
|-------|--------------------------------------------------------------------------------------------------|
| parse | rows outside the cuts on metadata are dropped, captions are cleaned, each row becomes a link     |
| fetch | images are fetched and normalised; each that arrived becomes a sample with its caption           |

The caption is the synthetic `top_caption` where a file has one (LAION-COCO, whose `TEXT` is the old alt text), else
`TEXT`. Each run of white space and control characters in it becomes one space; nothing else is changed.

A cut keeps what lies strictly below a maximum, and at or above a minimum. A row whose value is null or NaN is dropped
by a cut for its own reason, unless such rows are to be kept; a file without the column of a cut is refused.

The sample: the image, then its caption. Its `meta`:

| field          | meaning                                                                            |
|----------------|------------------------------------------------------------------------------------|
| url            | of the image, or its path in the media folder                                      |
| source, record | name of the input file, without its folder, and row number in it                   |
| scores         | similarity, punsafe, pwatermark, aesthetic: those that the row has                 |
| width, height  | pixels as the metadata say, where they do                                          |
| nsfw           | tag of the metadata, where there is one                                            |
| columns        | every other column of the row under the name of its file (`TEXT` of LAION-COCO, …) |
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.core.pipeline import (
    RECORD_FIELDS,
    Filter,
    Pipeline,
    Reason,
    Reasons,
    Rejected,
    Stage,
)
from pipelines.corpora.build import Build
from pipelines.corpora.laion.cuts import Bound, Cuts
from pipelines.images.normalise import ImageConfig, ImageContent
from pipelines.nested_columns import one_chunk
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.readers.columns import Column
from pipelines.readers.parquet import ParquetSource
from pipelines.transforms.samples import (
    arrived_images,
    origin,
    pair_table,
    parsed_table,
)
from schemas.sample import Link, canonical_json
from schemas.validation import Checked

CORPUS = "laion"
READER = ParquetSource
"""Reads the input files: one pair per row."""
REPORT = Report(
    title="LAION dataset",
    record_word="pair",
    score_titles={
        "similarity": "CLIP similarity of image and caption",
        "punsafe": "Probability of unsafe content",
        "pwatermark": "Probability of a watermark",
        "aesthetic": "Aesthetic score",
    },
)
CARD = Card(
    title=REPORT.title,
    about="Pairs of an image and its caption.",
    sources=("https://laion.ai/blog/laion-5b", "https://arxiv.org/abs/2210.08402"),
    licence="The images belong to their owners; the metadata of LAION are under CC-BY 4.0.",
    record_word=REPORT.record_word,
    tasks=("image-to-text", "text-to-image"),
)

SCORES: Mapping[str, tuple[str, ...]] = {
    "similarity": ("similarity",),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "aesthetic": ("aesthetic", "aesthetic_score"),
}
"""Scores of the metadata, with the names of their columns in any case."""
SIZES = ("width", "height")
CAPTIONS = ("top_caption", "text", "caption")
_BLANK = r"[\p{Z}\p{Cc}]+"


@dataclass(frozen=True)
class Rules(Checked):
    """What a LAION dataset is made by, apart from its inputs: part of its fingerprint."""

    caption_column: str | None = None
    """Name of the column of the captions; None takes the first of `CAPTIONS` that a file has."""
    max_caption_chars: Annotated[int, Field(ge=1, le=10_000_000, description="characters")] = 10_000
    cuts: Cuts = field(default_factory=Cuts)
    image: ImageConfig = field(default_factory=ImageConfig)


def pipeline(build: Build[ParquetSource], rules: Rules) -> Pipeline:
    """The pipeline from rows of metadata to published pairs; the rules say which columns are read."""
    content = ImageContent(rules.image)
    parse = Stage("parse", (*metadata_filters(rules.cuts), ParsePairs(rules.max_caption_chars)))
    return build.pipeline(
        CORPUS,
        (parse, build.fetch_stage(content, arrived_images(), make_pairs)),
        asdict(rules),
        REPORT,
        CARD,
        replace(build.source, columns=wanted_columns(rules)),
    )


def wanted_columns(rules: Rules) -> tuple[Column, ...]:
    """What is read of the files; a column that a cut needs is required."""
    captions = CAPTIONS if rules.caption_column is None else (rules.caption_column,)
    cuts = rules.cuts
    needed = set() if cuts.keep_unscored else {bound.column for bound in cuts.bounds()}
    numbers = [
        Column(name, pa.float64(), aliases, name in needed)
        for name, aliases in {**SCORES, **{size: (size,) for size in SIZES}}.items()
    ]
    return (
        Column("url", pa.string()),
        Column("caption", pa.large_string(), captions, option="--caption-column"),
        Column("nsfw", pa.string(), is_required=bool(cuts.drop_nsfw) and not cuts.keep_unscored),
        *numbers,
    )


def metadata_filters(cuts: Cuts) -> tuple[Filter, ...]:
    """Filters on the metadata, one for each cut that is made."""
    numbers = [_bound_filter(bound, cuts.keep_unscored) for bound in cuts.bounds()]
    tags = [_tag_filter(cuts.drop_nsfw, cuts.keep_unscored)] if cuts.drop_nsfw else []
    return (*tags, *numbers)


def _bound_filter(bound: Bound, keep_unscored: bool) -> Filter:
    """A filter that drops what lies on the wrong side of a bound as `<column>_high` or `_low`, or has no value."""
    word = f"{bound.column}_{'high' if bound.is_maximum else 'low'}"
    missing = f"{bound.column}_missing"
    reasons = {word: bound.reason}
    if not keep_unscored:
        reasons[missing] = Reason(f"The metadata have no {bound.column}, null or NaN; not fetched.")

    def test(table: pa.Table) -> pa.ChunkedArray:
        values = table[bound.column]
        is_known = pc.fill_null(pc.is_finite(values), False)
        is_bad = (
            pc.greater_equal(values, bound.value)
            if bound.is_maximum
            else pc.less(values, bound.value)
        )
        without = None if keep_unscored else missing
        found = pc.if_else(pc.fill_null(is_bad, False), word, _NONE)
        return pc.if_else(is_known, found, pa.scalar(without, pa.string()))

    return Filter(bound.column, test, reasons)


_NONE = pa.scalar(None, pa.string())


def _tag_filter(tags: tuple[str, ...], keep_unscored: bool) -> Filter:
    """A filter that drops rows with one of the tags, in any case, and rows without a tag."""
    reasons = {"nsfw_tag": Reason("The metadata's NSFW tag is one of those to drop; not fetched.")}
    if not keep_unscored:
        reasons["nsfw_missing"] = Reason("The metadata have no NSFW tag; not fetched.")
    folded = pa.array([tag.casefold() for tag in tags], pa.string())

    def test(table: pa.Table) -> pa.ChunkedArray:
        found = pc.if_else(pc.is_in(pc.utf8_lower(table["nsfw"]), folded), "nsfw_tag", _NONE)
        without = pa.scalar(None if keep_unscored else "nsfw_missing", pa.string())
        return pc.if_else(pc.is_null(table["nsfw"]), without, found)

    return Filter("nsfw", test, reasons)


PARSED = pa.schema([*RECORD_FIELDS, ("caption", pa.large_string()), ("meta", pa.string())])


@dataclass(frozen=True)
class ParsePairs:
    """Transform: the columns of the metadata become `caption`, `meta` and one link."""

    max_caption_chars: int
    reasons: ClassVar[Reasons] = {
        "no_url": Reason("The row has no link."),
        "no_caption": Reason("The caption is null or only white space."),
        "caption_too_long": Reason("The caption has more characters than `max_caption_chars`."),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows with their links; those that give no pair carry the reason."""
        caption = pc.utf8_trim_whitespace(pc.replace_substring_regex(table["caption"], _BLANK, " "))
        table = table.set_column(table.schema.get_field_index("caption"), "caption", caption)
        return parsed_table(table, PARSED, self._parse)

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        if not row["url"]:
            raise Rejected("no_url")
        if not row["caption"]:
            raise Rejected("no_caption")
        length, limit = len(row["caption"]), self.max_caption_chars
        if length > limit:
            raise Rejected("caption_too_long", f"{length:,} characters, limit {limit:,}")
        return {"links": [Link(0, row["url"]).as_row()], "meta": canonical_json(_meta(row))}


def _meta(row: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: row[name] for name in SCORES if _is_finite(row[name])}
    sizes = {name: int(row[name]) for name in SIZES if _is_finite(row[name])}
    tag = {} if row["nsfw"] is None else {"nsfw": row["nsfw"]}
    columns = {} if row["extra"] is None else {"columns": json.loads(row["extra"])}
    return {"url": row["url"], **origin(row), "scores": scores, **sizes, **tag, **columns}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def make_pairs(table: pa.Table) -> pa.Table:
    """Transform: image and caption become the two segments of a sample."""
    return pair_table(table, one_chunk(table["caption"]).cast(pa.string()))
