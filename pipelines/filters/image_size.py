"""Filter: an image that is large enough."""

import numpy as np
import pyarrow as pa

from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.columns import field_of, first_reason, largest_by_record

REASONS = {"images_too_small": Reason("No image has a shorter side of the wanted length.")}


def image_size(min_side: int = 64, max_drop: float = 0.9) -> Filter:
    """A filter that keeps samples with an image whose shorter side has at least `min_side` pixels."""
    if min_side < 1:
        raise ValueError(f"image_size: min_side {min_side}: at least 1 pixel")

    def shorter_side(segments: pa.StructArray) -> np.ndarray:
        return np.minimum(field_of(segments, "width"), field_of(segments, "height"))

    def test(table: pa.Table) -> pa.Array:
        is_bad = largest_by_record(table, shorter_side) < min_side
        return first_reason(len(table), (is_bad, "images_too_small"))

    return Filter("image_size", test, REASONS, max_drop)
