"""Numbers a record, taken from the column `segments` without touching the bytes of images."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def field_of(segments: pa.StructArray, name: str) -> np.ndarray:
    """One field of segments as numbers; null is 0."""
    return pc.fill_null(segments.field(name), 0).to_numpy(zero_copy_only=False)


def is_image(segments: pa.StructArray) -> np.ndarray:
    """For each segment whether it is an image."""
    return pc.equal(segments.field("kind"), "image").to_numpy(zero_copy_only=False)


def text_lengths(segments: pa.StructArray) -> np.ndarray:
    """For each segment its characters of text; 0 for an image."""
    lengths = pc.fill_null(pc.utf8_length(segments.field("text")), 0)
    return lengths.to_numpy(zero_copy_only=False)


def sum_by_record(table: pa.Table, values: Callable[[pa.StructArray], np.ndarray]) -> np.ndarray:
    """For each record the sum of a number over its segments."""
    return _by_record(table, values, np.add)


def largest_by_record(
    table: pa.Table, values: Callable[[pa.StructArray], np.ndarray]
) -> np.ndarray:
    """For each record the largest of a number >= 0 over its segments; 0 without segments."""
    return _by_record(table, values, np.maximum)


def first_reason(num_rows: int, *rules: tuple[np.ndarray, str]) -> pa.Array:
    """For each record the reason of the first rule that is true for it, else null."""
    found = np.full(num_rows, None, dtype=object)
    for is_bad, reason in reversed(rules):
        found[is_bad] = reason
    return pa.array(found, pa.string())


def _by_record(
    table: pa.Table, values: Callable[[pa.StructArray], np.ndarray], combine: np.ufunc
) -> np.ndarray:
    parts = [np.zeros(0, dtype=np.int64)]
    for chunk in table["segments"].chunks:
        totals = np.zeros(len(chunk), dtype=np.int64)
        records = pc.list_parent_indices(chunk).to_numpy()
        combine.at(totals, records, values(chunk.flatten()).astype(np.int64))
        parts.append(totals)
    return np.concatenate(parts)
