"""From records to what they are parsed into, and from fetched images to samples; the same for every corpus."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.core.pipeline import RECORD_FIELDS, Filter, Reason, Rejected, shard_of
from schemas.sample import SEGMENT_TYPE, Segment

SAMPLE_FIELDS = (
    pa.field("corpus", pa.string()),
    pa.field("segments", pa.list_(SEGMENT_TYPE)),
    pa.field("meta", pa.string()),
)
"""What the sink takes beside the reserved columns."""
SAMPLE_SCHEMA = pa.schema([*RECORD_FIELDS, *SAMPLE_FIELDS])


def parsed_table(
    table: pa.Table, schema: pa.Schema, parse: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> pa.Table:
    """The records with the columns that `parse` adds to each; what it rejects carries the reason.

    Args:
        table: the records as read.
        schema: of the result; columns that it leaves out are dropped.
        parse: a record to its new columns; raises `Rejected`.
    """
    rows = [_parsed(row, parse) for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=schema.with_metadata(table.schema.metadata))


def _parsed(
    row: dict[str, Any], parse: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    if row["drop_reason"] is not None:
        return row
    try:
        return {**row, **parse(row)}
    except Rejected as rejected:
        return row | {"drop_reason": rejected.reason, "drop_detail": rejected.detail}


def origin(row: Mapping[str, Any]) -> dict[str, Any]:
    """Where a record is from, for its `meta`: the name of the input file without its folder, and its number in it."""
    return {"source": re.split(r"[/\\]", row["source"])[-1], "record": row["record"]}


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

    meaning = "None of the images could be fetched."
    return Filter("arrived_images", test, {"no_image_arrived": Reason(meaning)})
