"""Filter: samples with enough segments, texts and images, and not too many."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.columns import SegmentColumns
from pipelines.core.pipeline import Filter, Reason

REASONS = {
    "too_few_segments": Reason("The sample has too few segments, texts or images."),
    "too_many_segments": Reason("The sample has too many segments, texts or images."),
}


def segment_count(
    min_segments: int = 2,
    max_segments: int | None = None,
    min_texts: int = 0,
    max_texts: int | None = None,
    min_images: int = 0,
    max_images: int | None = None,
    max_drop: float = 0.9,
) -> Filter:
    """Samples with these numbers of segments, texts and images; blank texts count too."""
    bounds = {
        "segments": (min_segments, max_segments),
        "texts": (min_texts, max_texts),
        "images": (min_images, max_images),
    }
    for noun, (low, high) in bounds.items():
        if low < 0 or (high is not None and high < low):
            raise ValueError(
                f"segment_count: min_{noun} is {low} and max_{noun} {high}, give 0 <= minimum <= maximum"
            )

    def test(table: pa.Table) -> pa.Array:
        segments = SegmentColumns.of(table)
        is_image = pc.equal(segments.field("kind"), "image")
        total = np.bincount(segments.row, minlength=len(table))
        images = np.bincount(segments.row.filter(is_image), minlength=len(table))
        found = {"segments": total, "texts": total - images, "images": images}
        few = np.logical_or.reduce([found[n] < low for n, (low, _) in bounds.items()])
        many = np.logical_or.reduce(
            [found[n] > high for n, (_, high) in bounds.items() if high is not None]
            or [np.zeros(len(table), bool)]
        )
        too_many = pc.if_else(many, "too_many_segments", pa.scalar(None, pa.string()))
        return pc.if_else(few, "too_few_segments", too_many)

    return Filter("segment_count", test, REASONS, max_drop)
