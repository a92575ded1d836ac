"""Filter: enough images."""

import pyarrow as pa

from pipelines.core.pipeline import Filter
from pipelines.filters.columns import first_reason, is_image, sum_by_record


def min_images(minimum: int = 1, reason: str = "too_few_images", max_drop: float = 0.9) -> Filter:
    """A filter that keeps samples of at least `minimum` images."""
    if minimum < 1:
        raise ValueError(f"min_images: minimum {minimum}: at least 1 (0 would keep everything)")

    def reasons(table: pa.Table) -> pa.Array:
        return first_reason(len(table), (sum_by_record(table, is_image) < minimum, reason))

    return Filter("min_images", reasons, max_drop)
