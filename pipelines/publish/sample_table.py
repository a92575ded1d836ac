"""A table of samples into a tar: checked as a whole, its images never copied on their way.

The rows of `schemas.sample.SAMPLES` are checked by column, by the rules of `schemas.sample.check_sample`. Where one is
broken, the samples are checked one by one, for the error that names the first. Images are written and hashed where they
lie in the memory of Arrow.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from schemas.sample import (
    CORPUS_PATTERN,
    FORMATS,
    KEY_PATTERN,
    ROLES,
    SAMPLES,
    canonical_json,
    check_sample,
    unchecked_sample,
)
from schemas.tar_writer import SegmentValues, TarWriter


def write_table(file: BinaryIO, table: pa.Table, shard: str) -> list[dict[str, Any]]:
    """Write the samples of a table, other columns left aside, and return the rows of their index.

    Raises:
        SchemaError: a sample breaks a rule; names its key, the segment and the field.
    """
    writer = TarWriter(file, shard)
    for batch in table.select([c.name for c in SAMPLES.columns]).to_batches():
        if not _is_valid(batch):
            _check_each(batch)
        segments = _segments_of(batch.column("segments"))
        names = (batch.column(name).to_pylist() for name in ("key", "corpus", "meta"))
        for row, (key, corpus, meta) in enumerate(zip(*names, strict=True)):
            try:
                about = json.loads(meta)
                canonical = canonical_json(about)
                scores = about.get("scores") or {}
            except (TypeError, ValueError, AttributeError):
                _check_each(batch.slice(row, 1))
                raise
            writer.add(key, corpus, next(segments), canonical, scores)
    return writer.end()


def _check_each(batch: pa.RecordBatch) -> None:
    for row in batch.to_pylist():
        check_sample(unchecked_sample(row))


def _is_valid(batch: pa.RecordBatch) -> bool:
    """Whether key, corpus and segments of every sample are as `check_sample` wants them."""
    segments = batch.column("segments")
    flat = pc.list_flatten(segments)
    kind, text, image, format, width, height, time_s, role = (
        pc.struct_field(flat, field.name) for field in flat.type
    )
    sizes = pc.and_(pc.greater_equal(width, 1), pc.greater_equal(height, 1))
    is_image = _all_of(
        pc.equal(kind, "image"),
        pc.is_null(text),
        pc.greater(pc.binary_length(image), 0),
        pc.is_in(format, pa.array(FORMATS)),
        sizes,
    )
    is_text = _all_of(
        pc.equal(kind, "text"),
        pc.is_valid(text),
        *(pc.is_null(field) for field in (image, format, width, height)),
    )
    has_time = pc.or_(
        pc.is_null(time_s), _all_of(pc.is_finite(time_s), pc.greater_equal(time_s, 0))
    )
    has_role = pc.or_(pc.is_null(role), pc.is_in(role, pa.array(ROLES)))
    rules = (
        _all_of(pc.or_(is_image, is_text), has_time, has_role),
        pc.greater(pc.list_value_length(segments), 0),
        pc.match_substring_regex(batch.column("key"), KEY_PATTERN),
        pc.match_substring_regex(batch.column("corpus"), CORPUS_PATTERN),
    )
    return all(pc.all(pc.fill_null(rule, False)).as_py() for rule in rules)


def _all_of(*rules: pa.Array) -> pa.Array:
    """True where every rule is true; null counts as false."""
    found = pc.fill_null(rules[0], False)
    for rule in rules[1:]:
        found = pc.and_(found, pc.fill_null(rule, False))
    return found


def _segments_of(column: pa.ListArray) -> Iterator[list[SegmentValues]]:
    """The segments of each sample; images as views of the memory of the column."""
    flat = pc.list_flatten(column)
    fields = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    values = list(
        zip(
            fields["kind"].to_pylist(),
            fields["text"].to_pylist(),
            _views(fields["image"]),
            fields["format"].to_pylist(),
            *(_numbers(fields[name]) for name in ("width", "height", "time_s")),
            _with_nulls(fields["role"]),
            strict=True,
        )
    )
    position = 0
    for length in pc.list_value_length(column).to_pylist():
        yield values[position : position + length]
        position += length


def _views(images: pa.LargeBinaryArray) -> list[memoryview | None]:
    """The bytes of each image, where they lie."""
    _, offsets, data = images.buffers()
    if data is None:
        return [None] * len(images)
    bounds = memoryview(offsets).cast("q")[images.offset : images.offset + len(images) + 1].tolist()
    whole = memoryview(data)
    return [whole[start:end] for start, end in itertools.pairwise(bounds)]


def _numbers(values: pa.Array) -> list[Any]:
    if values.null_count:
        return _with_nulls(values)
    return values.to_numpy().tolist()


def _with_nulls(values: pa.Array) -> list[Any]:
    return [None] * len(values) if values.null_count == len(values) else values.to_pylist()
