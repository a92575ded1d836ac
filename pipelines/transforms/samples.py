"""From fetched images to the columns of a sample; the same for every corpus that fetches images."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.core.pipeline import RECORD_FIELDS, Filter, Reason, shard_of
from schemas.sample import SEGMENT_TYPE, Segment

SAMPLE_FIELDS = (
    pa.field("corpus", pa.string()),
    pa.field("segments", pa.list_(SEGMENT_TYPE)),
    pa.field("meta", pa.string()),
)
"""What the sink takes beside the reserved columns."""
SAMPLE_SCHEMA = pa.schema([*RECORD_FIELDS, *SAMPLE_FIELDS])


def sample_table(rows: Iterable[Mapping[str, Any]], table: pa.Table) -> pa.Table:
    """Rows with `segments` and `meta` as samples of the dataset that a table, of which they were made, is of."""
    corpus = shard_of(table).rpartition("-")[0]
    named = [{**row, "corpus": corpus} for row in rows]
    return pa.Table.from_pylist(named, schema=SAMPLE_SCHEMA.with_metadata(table.schema.metadata))


def image_segment(image: Mapping[str, Any]) -> Segment:
    """The segment of a value of `ImageContent`."""
    return Segment.of_image(image["data"], image["format"], image["width"], image["height"])


def arrived_images() -> Filter:
    """A filter that keeps records of which an image arrived."""

    def test(table: pa.Table) -> pa.Array:
        lengths = table["images"].combine_chunks().value_lengths().to_pylist()
        return pa.array([None if n else "no_image_arrived" for n in lengths], pa.string())

    meaning = "None of the images that were to be fetched arrived."
    return Filter("arrived_images", test, {"no_image_arrived": Reason(meaning)})
