"""Nested columns that hold bytes: made of Python values, and taken apart, with one copy of the bytes or none.

A shard holds tens of megabytes of images. Arrow's own conversion grows its memory as values come, and writes into
memory that the system must provide first, which can take longer than to decode the images.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def column_of(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """The values as an array, as `pyarrow.array` makes it: structs are mappings, a field that is missing is null."""
    if pa.types.is_large_binary(type_):
        return _bytes_column(values)
    if not _holds_bytes(type_) or any(value is None for value in values):
        return pa.array(values, type_)
    if pa.types.is_list(type_):
        inner = column_of(list(chain.from_iterable(values)), type_.value_type)
        return in_lists(inner, [len(value) for value in values])
    columns = [column_of([v.get(f.name) for v in values], f.type) for f in type_]
    return pa.StructArray.from_arrays(columns, fields=list(type_))


def in_lists(values: pa.Array, lengths: Sequence[int] | np.ndarray) -> pa.ListArray:
    """The values cut into lists, one behind the other."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def numbered(values: pa.Array) -> tuple[pa.Array, pa.LargeBinaryArray]:
    """Lists and structs around one field of bytes, with numbers in place of the bytes; and the bytes, in order."""
    if pa.types.is_large_binary(values.type):
        return pa.array(np.arange(len(values))), values
    if pa.types.is_list(values.type):
        inner, data = numbered(pc.list_flatten(values))
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        return in_lists(inner, lengths), data
    assert pa.types.is_struct(values.type), values.type
    fields = dict(zip(values.type.names, values.flatten(), strict=True))
    name = next(f.name for f in values.type if _holds_bytes(f.type))
    fields[name], data = numbered(fields[name])
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields)), data


def placed(data: pa.LargeBinaryArray, numbers: pa.Array) -> pa.LargeBinaryArray:
    """The bytes of each number, null for null; in the memory of `data` where each is named once, in order."""
    is_there = numbers.is_valid().to_numpy(zero_copy_only=False)
    wanted = numbers.drop_null().to_numpy()
    if data.null_count or not np.array_equal(wanted, np.arange(len(data))):
        return data.take(numbers)
    _, offsets, contents = data.buffers()
    bounds = np.frombuffer(offsets, np.int64)[data.offset : data.offset + len(data) + 1]
    spread = bounds[np.concatenate(([0], np.cumsum(is_there)))]
    mask = pa.array(is_there).buffers()[1]
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(numbers), [mask, pa.py_buffer(spread), contents]
    )


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece; copied only where it is in several."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _bytes_column(values: Sequence[bytes | None]) -> pa.LargeBinaryArray:
    lengths = (0 if value is None else len(value) for value in values)
    offsets = np.fromiter(accumulate(lengths, initial=0), np.int64, len(values) + 1)
    has_null = any(value is None for value in values)
    mask = pa.array([value is not None for value in values]).buffers()[1] if has_null else None
    contents = b"".join(value for value in values if value is not None)
    buffers = [mask, pa.py_buffer(offsets), pa.py_buffer(contents)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), buffers)


def _holds_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_list(type_):
        return _holds_bytes(type_.value_type)
    if pa.types.is_struct(type_):
        return any(_holds_bytes(field.type) for field in type_)
    return pa.types.is_large_binary(type_)
