"""Filter: enough images."""

import pyarrow as pa

from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.columns import first_reason, is_image, sum_by_record


def min_images(
    minimum: int = 1,
    reason: str = "too_few_images",
    meaning: str = "Fewer images than wanted.",
    max_drop: float = 0.9,
) -> Filter:
    """A filter that keeps samples of at least `minimum` images; others get `reason`."""
    if minimum < 1:
        raise ValueError(f"min_images: minimum {minimum}: at least 1 (0 would keep everything)")

    def test(table: pa.Table) -> pa.Array:
        return first_reason(len(table), (sum_by_record(table, is_image) < minimum, reason))

    return Filter("min_images", test, {reason: Reason(meaning)}, max_drop)
