"""From records to what they are parsed into, and from fetched images to samples; the same for every corpus."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import RECORD_FIELDS, RESERVED, Filter, Reason, Rejected, shard_of
from pipelines.nested_columns import column_of, in_lists, numbered, one_chunk, placed
from schemas.sample import CANONICAL_META, SEGMENT_TYPE, CanonicalJson, Segment, Segments

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
    if "meta" in schema.names:
        schema = _with_meta_of(schema, [row.get("meta") for row in rows])
    return pa.Table.from_pylist(rows, schema=schema.with_metadata(table.schema.metadata))


def _with_meta_of(schema: pa.Schema, metas: Iterable[str | None]) -> pa.Schema:
    """The schema with `CANONICAL_META` where `canonical_json` made each of these texts."""
    if not set(map(type, metas)) <= {CanonicalJson, type(None)}:
        return schema
    return schema.set(schema.get_field_index("meta"), CANONICAL_META)


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
    """Rows with `segments` and `meta` as samples of the dataset that a table, of which they were made, is of.

    The `segments` of a row are `schemas.sample.Segments`; a row that is dropped has none.
    """
    found = list(rows)
    all_segments = [row.get("segments") or _NO_SEGMENTS for row in found]
    lengths = [len(segments.is_image) for segments in all_segments]
    columns = (list(chain.from_iterable(values)) for values in zip(*all_segments, strict=True))
    segments = in_lists(_segment_array(Segments(*columns) if found else _NO_SEGMENTS), lengths)
    return _with_segments(found, segments, table)


_NO_SEGMENTS = Segments((), (), (), (), (), (), (), ())


def _segment_array(found: Segments) -> pa.StructArray:
    """The segments as values of `SEGMENT_TYPE`."""
    is_image = np.array(found.is_image, bool)
    image = pa.array(np.cumsum(is_image) - 1, mask=~is_image)
    text = pa.array(np.cumsum(~is_image) - 1, mask=is_image)
    fields = {
        "kind": pa.array(["text", "image"]).take(pa.array(is_image.astype(np.int8))),
        "text": pa.array(found.texts, pa.string()).take(text),
        "image": placed(column_of(found.images, pa.large_binary()), image),
        "format": pa.array(found.formats, pa.string()).take(image),
        "width": pa.array(found.widths, pa.int32()).take(image),
        "height": pa.array(found.heights, pa.int32()).take(image),
        "time_s": pa.array(found.times, pa.float64()),
        "role": pa.array(found.roles, pa.string()),
    }
    return pa.StructArray.from_arrays(
        [fields[field.name] for field in SEGMENT_TYPE], fields=list(SEGMENT_TYPE)
    )


def assembled_table(
    table: pa.Table, column: str, assemble: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> pa.Table:
    """The samples that `assemble` makes of each record of a table whose images lie in a column.

    No image becomes an object of Python on the way: in the rows that `assemble` is given a number stands for its bytes,
    and the bytes are put where that number stands in the segments.

    Args:
        table: the records.
        column: holds the images; lists and structs with one field of bytes, such as `ImageContent` gives.
        assemble: a record to one with `segments` and `meta`.
    """
    numbers, images = numbered(one_chunk(table[column]))
    index = table.schema.get_field_index(column)
    rows = [assemble(row) for row in table.set_column(index, column, numbers).to_pylist()]
    light = pa.array([row["segments"] for row in rows], pa.list_(_NUMBERED_SEGMENT))
    fields = dict(zip(SEGMENT_TYPE.names, pc.list_flatten(light).flatten(), strict=True))
    fields["image"] = placed(images, fields["image"])
    segments = pa.StructArray.from_arrays(list(fields.values()), fields=list(SEGMENT_TYPE))
    return _with_segments(rows, in_lists(segments, [len(r["segments"]) for r in rows]), table)


_NUMBERED_SEGMENT = pa.struct(
    [pa.field("image", pa.int64()) if f.name == "image" else f for f in SEGMENT_TYPE]
)


def _with_segments(
    rows: Sequence[Mapping[str, Any]], segments: pa.Array, table: pa.Table
) -> pa.Table:
    corpus = shard_of(table).rpartition("-")[0]
    columns = {
        field.name: pa.array([row.get(field.name) for row in rows], field.type)
        for field in SAMPLE_SCHEMA
        if field.name not in ("corpus", "segments")
    }
    columns |= {"corpus": pa.array([corpus] * len(rows), pa.string()), "segments": segments}
    schema = _with_meta_of(SAMPLE_SCHEMA, (row.get("meta") for row in rows))
    return _samples(columns, schema, table)


def _samples(columns: Mapping[str, Any], schema: pa.Schema, table: pa.Table) -> pa.Table:
    schema = schema.with_metadata(table.schema.metadata)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def pair_table(table: pa.Table, texts: pa.Array) -> pa.Table:
    """The samples of records with `images`, a text each and `meta`: each image, followed by the text."""
    images = one_chunk(table["images"])
    flat, row = pc.list_flatten(images), pc.list_parent_indices(images)
    count = len(flat)
    twice, is_text = np.repeat(np.arange(count), 2), np.tile([False, True], count)
    image = pa.array(twice, mask=is_text)
    fields = {f.name: pa.nulls(2 * count, f.type) for f in SEGMENT_TYPE}
    fields["kind"] = pa.array(["image", "text"] * count, pa.string())
    fields["text"] = texts.take(row).take(pa.array(twice, mask=~is_text))
    fields["image"] = placed(pc.struct_field(flat, "data"), image)
    fields |= {n: pc.struct_field(flat, n).take(image) for n in ("format", "width", "height")}
    segments = pa.StructArray.from_arrays(list(fields.values()), fields=list(SEGMENT_TYPE))
    corpus = pa.array([shard_of(table).rpartition("-")[0]] * table.num_rows, pa.string())
    columns = {name: table[name] for name in (*RESERVED, "meta")} | {"corpus": corpus}
    columns["segments"] = in_lists(segments, 2 * pc.list_value_length(images).to_numpy())
    # The field says of the texts in it what the parse step knew of them.
    position = SAMPLE_SCHEMA.get_field_index("meta")
    return _samples(columns, SAMPLE_SCHEMA.set(position, table.schema.field("meta")), table)


def image_segment(image: Mapping[str, Any]) -> Segment:
    """The segment of a value of `ImageContent`."""
    return Segment.of_image(image["data"], image["format"], image["width"], image["height"])


def arrived_images() -> Filter:
    """A filter that keeps records of which an image arrived."""

    def test(table: pa.Table) -> pa.Array:
        lengths = table["images"].combine_chunks().value_lengths().to_pylist()
        return pa.array([None if n else "no_image_arrived" for n in lengths], pa.string())

    reasons = {"no_image_arrived": Reason("None of the images could be fetched.")}
    return Filter("arrived_images", test, reasons)
