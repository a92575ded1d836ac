"""Filter: samples whose images are not too wide or too high for their other side."""

import numpy as np
import pyarrow as pa

from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.image_rule import Images, image_columns, image_reasons, numbers

REASONS = {"images_too_elongated": Reason("The aspect ratio of its images is too large.")}


def image_aspect(max_ratio: float = 3.0, images: Images = "any", max_drop: float = 0.9) -> Filter:
    """Samples with images whose longer side is at most `max_ratio` times the shorter one."""
    if max_ratio < 1:
        raise ValueError(
            f"image_aspect: max_ratio is {max_ratio}, give at least 1 (longer : shorter side)"
        )

    def test(table: pa.Table) -> pa.Array:
        segments = image_columns(table)
        width, height = numbers(segments, "width"), numbers(segments, "height")
        is_long = np.maximum(width, height) > max_ratio * np.minimum(width, height)
        return image_reasons(table, segments, (is_long,), list(REASONS), images)

    return Filter("image_aspect", test, REASONS, max_drop)
