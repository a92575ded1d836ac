"""Filter: samples with enough images."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import Filter, Reason

REASONS = {"too_few_images": Reason("The sample has too few images.")}


def min_images(
    minimum: int = 1,
    reason: str = "too_few_images",
    meaning: str = REASONS["too_few_images"].meaning,
    max_drop: float = 0.9,
) -> Filter:
    """Samples with at least `minimum` images; the others are dropped for `reason`."""
    if minimum < 1:
        raise ValueError(f"min_images: minimum is {minimum}, give at least 1 (0 keeps everything)")

    def test(table: pa.Table) -> pa.Array:
        segments = table["segments"]
        is_image = pc.equal(pc.struct_field(pc.list_flatten(segments), "kind"), "image")
        records = pc.list_parent_indices(segments).filter(is_image)
        num_images = np.bincount(records, minlength=len(table))
        return pc.if_else(num_images < minimum, reason, pa.scalar(None, pa.string()))

    return Filter("min_images", test, {reason: Reason(meaning)}, max_drop)
