"""A table of samples into a tar: checked as a whole, its images never copied on their way.

The rows of `schemas.sample.SAMPLES` are checked by column, by the rules of `schemas.sample.check_sample`. Where one is
broken, the samples are checked one by one, for the error that names the first. Images are written and hashed where they
lie in the memory of Arrow.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.sample import (
    CANONICAL_META,
    CORPUS_PATTERN,
    FORMATS,
    KEY_PATTERN,
    ROLES,
    SAMPLES,
    Segments,
    canonical_json,
    check_sample,
    unchecked_sample,
)
from schemas.tar_writer import TarWriter


def write_table(file: BinaryIO, table: pa.Table, shard: str) -> list[dict[str, Any]]:
    """Write the samples of a table, other columns left aside, and return the rows of their index.

    Raises:
        SchemaError: a sample breaks a rule; names its key, the segment and the field.
    """
    writer = TarWriter(file, shard)
    is_canonical = table.schema.field("meta").metadata == CANONICAL_META.metadata
    for batch in table.select([c.name for c in SAMPLES.columns]).to_batches():
        if not _is_valid(batch):
            _check_each(batch)
        segments = _segments_of(batch.column("segments"))
        names = (batch.column(name).to_pylist() for name in ("key", "corpus", "meta"))
        for row, (key, corpus, meta) in enumerate(zip(*names, strict=True)):
            try:
                canonical, scores = _canonical(meta, is_canonical)
            except (TypeError, ValueError, AttributeError):
                _check_each(batch.slice(row, 1))
                raise
            writer.add(key, corpus, next(segments), canonical, scores)
    return writer.end()


def _canonical(meta: str, is_canonical: bool) -> tuple[str, Mapping[str, Any]]:
    """A meta in canonical form, and its scores; what is canonical by construction is read only for its scores."""
    if is_canonical and meta.startswith("{") and '"scores":' not in meta:
        return meta, {}
    about = json.loads(meta)
    return meta if is_canonical else canonical_json(about), about.get("scores") or {}


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


def _segments_of(column: pa.ListArray) -> Iterator[Segments]:
    """The segments of each sample of a valid column; images as views of the memory of the column."""
    flat = pc.list_flatten(column)
    fields = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    is_image = pc.equal(fields["kind"], "image")
    flags = is_image.to_numpy(zero_copy_only=False)
    times, roles = (_with_nulls(fields[name]) for name in ("time_s", "role"))
    texts, formats = (fields[name].drop_null().to_pylist() for name in ("text", "format"))
    widths, heights = (fields[n].drop_null().to_numpy().tolist() for n in ("width", "height"))
    images = _views(fields["image"], flags)
    # Of a valid column a segment is an image or a text, and has what such a one has.
    num_images_until = np.concatenate(([0], np.cumsum(flags))).tolist()
    flags = flags.tolist()
    first = 0
    for length in pc.list_value_length(column).to_pylist():
        last = first + length
        image = slice(num_images_until[first], num_images_until[last])
        text = slice(first - image.start, last - image.stop)
        yield Segments(
            is_image=flags[first:last],
            times=times[first:last],
            roles=roles[first:last],
            texts=texts[text],
            images=images[image],
            formats=formats[image],
            widths=widths[image],
            heights=heights[image],
        )
        first = last


def _views(images: pa.LargeBinaryArray, chosen: np.ndarray) -> list[memoryview]:
    """The bytes of each chosen image, where they lie."""
    _, offsets, data = images.buffers()
    if data is None:
        return []
    bounds = np.frombuffer(offsets, np.int64)[images.offset : images.offset + len(images) + 1]
    whole = memoryview(data)
    starts, ends = bounds[:-1][chosen].tolist(), bounds[1:][chosen].tolist()
    return [whole[start:end] for start, end in zip(starts, ends, strict=True)]


def _with_nulls(values: pa.Array) -> list[Any]:
    if values.null_count == len(values):
        return [None] * len(values)
    return (
        values.to_pylist() if values.null_count else values.to_numpy(zero_copy_only=False).tolist()
    )
