"""Filter: enough text, and not too much."""

import pyarrow as pa

from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.columns import first_reason, sum_by_record, text_lengths

REASONS = {
    "text_too_short": Reason("Fewer characters of text than wanted."),
    "text_too_long": Reason("More characters of text than wanted."),
}


def text_length(minimum: int = 1, maximum: int | None = None, max_drop: float = 0.9) -> Filter:
    """A filter that keeps samples of `minimum` to `maximum` characters of text in all."""
    if minimum < 0 or (maximum is not None and maximum < minimum):
        raise ValueError(f"text_length: {minimum}..{maximum} is empty: 0 <= minimum <= maximum")

    def test(table: pa.Table) -> pa.Array:
        length = sum_by_record(table, text_lengths)
        too_long = length > (maximum if maximum is not None else length)
        return first_reason(
            len(table), (length < minimum, "text_too_short"), (too_long, "text_too_long")
        )

    return Filter("text_length", test, REASONS, max_drop)
