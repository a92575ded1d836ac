"""Filter: samples whose images have enough bytes, and not too many: placeholders and icons are small files."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.image_rule import Images, image_columns, image_reasons

REASONS = {
    "images_too_few_bytes": Reason("The files of its images are smaller than `minimum`."),
    "images_too_many_bytes": Reason("The files of its images are larger than `maximum`."),
}


def image_bytes(
    minimum: int = 1024, maximum: int | None = None, images: Images = "any", max_drop: float = 0.9
) -> Filter:
    """Samples with images of `minimum` to `maximum` bytes, as they are published."""
    if minimum < 0 or (maximum is not None and maximum < minimum):
        raise ValueError(
            f"image_bytes: minimum is {minimum} and maximum {maximum}, give 0 <= minimum <= maximum (bytes)"
        )

    def test(table: pa.Table) -> pa.Array:
        segments = image_columns(table)
        lengths = pc.fill_null(pc.binary_length(segments.field("image")), 0)
        size = lengths.to_numpy(zero_copy_only=False)
        faults = (size < minimum, size > (np.inf if maximum is None else maximum))
        return image_reasons(table, segments, faults, list(REASONS), images)

    return Filter("image_bytes", test, REASONS, max_drop)
