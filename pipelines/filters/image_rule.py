"""What the filters of images have in common: from a test of every image to a reason for every sample."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.columns import SegmentColumns

Images = Literal["any", "all"]
"""`any`: a sample needs one image within the bounds; `all`: an image out of them drops the sample."""


def image_columns(table: pa.Table) -> SegmentColumns:
    """The image segments of a table."""
    return SegmentColumns.of(table).of_kind("image")


def numbers(segments: SegmentColumns, name: str) -> np.ndarray:
    """A field of every image as float64; 0 where it is not known."""
    return pc.fill_null(segments.field(name).cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)


def image_reasons(
    table: pa.Table,
    segments: SegmentColumns,
    faults: Sequence[np.ndarray],
    words: Sequence[str],
    images: Images,
) -> pa.Array:
    """For each sample null or one of `words`.

    Args:
        table: the samples.
        segments: their N images.
        faults: for each word which of the N images are bad in that way.
        words: the reasons; of several that apply, the first. A sample without images lacks one within the bounds.
        images: how many images of a sample have to be good.
    """
    rows, num = segments.row.to_numpy(zero_copy_only=False), table.num_rows
    is_bad = np.logical_or.reduce([*faults, np.zeros(len(rows), bool)])
    num_good = np.bincount(rows[~is_bad], minlength=num)
    num_bad = np.bincount(rows[is_bad], minlength=num)
    dropped = num_bad > 0 if images == "all" else num_good == 0
    reason = np.full(num, words[0], object)
    for word, fault in reversed(list(zip(words, faults, strict=True))):
        reason[np.bincount(rows[fault], minlength=num) > 0] = word
    return pa.array(reason, pa.string(), mask=~dropped)
