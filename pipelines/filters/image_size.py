"""Filter: samples whose images are large enough, and not too large, in pixels."""

import numpy as np
import pyarrow as pa

from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.image_rule import Images, image_columns, image_reasons, numbers

REASONS = {
    "images_too_small": Reason(
        "No image has enough pixels, or, with `images=all`, one has too few."
    ),
    "images_too_large": Reason("Every image has too many pixels, or, with `images=all`, one has."),
}


def image_size(
    min_side: int = 64,
    max_side: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    images: Images = "any",
    max_drop: float = 0.9,
) -> Filter:
    """Samples with images of these sizes in pixels: bounds of shorter side, longer side, width x height."""
    if min_side < 1:
        raise ValueError(f"image_size: min_side is {min_side}, give at least 1 (pixels)")
    if max_side is not None and max_side < min_side:
        raise ValueError(f"image_size: max_side {max_side} is below min_side {min_side} (pixels)")
    if max_pixels is not None and max_pixels < (min_pixels or 1):
        raise ValueError(f"image_size: max_pixels {max_pixels} is below min_pixels {min_pixels}")

    def test(table: pa.Table) -> pa.Array:
        segments = image_columns(table)
        width, height = numbers(segments, "width"), numbers(segments, "height")
        area = width * height
        is_small = (np.minimum(width, height) < min_side) | (area < (min_pixels or 0))
        is_large = (np.maximum(width, height) > (max_side or np.inf)) | (
            area > (max_pixels or np.inf)
        )
        return image_reasons(table, segments, (is_small, is_large), list(REASONS), images)

    return Filter("image_size", test, REASONS, max_drop)
