"""Filter: samples with an image that is large enough."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import Filter, Reason

REASONS = {"images_too_small": Reason("No image has a shorter side of the wanted length.")}


def image_size(min_side: int = 64, max_drop: float = 0.9) -> Filter:
    """A filter that keeps samples with an image whose shorter side has at least `min_side` pixels."""
    if min_side < 1:
        raise ValueError(f"image_size: min_side is {min_side}, give at least 1 (pixels)")

    def test(table: pa.Table) -> pa.Array:
        segments = pc.list_flatten(table["segments"])
        width, height = (pc.struct_field(segments, name) for name in ("width", "height"))
        shorter_side = pc.fill_null(pc.min_element_wise(width, height), 0)
        largest = np.zeros(len(table), dtype=np.int64)
        np.maximum.at(largest, pc.list_parent_indices(table["segments"]), shorter_side)
        return pc.if_else(largest < min_side, "images_too_small", pa.scalar(None, pa.string()))

    return Filter("image_size", test, REASONS, max_drop)
