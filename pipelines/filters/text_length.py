"""Filter: samples with enough text, and not too much."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import Filter, Reason

REASONS = {
    "text_too_short": Reason("Fewer characters of text than wanted."),
    "text_too_long": Reason("More characters of text than wanted."),
}


def text_length(minimum: int = 1, maximum: int | None = None, max_drop: float = 0.9) -> Filter:
    """A filter that keeps samples whose texts have `minimum` to `maximum` characters in total."""
    if minimum < 0 or (maximum is not None and maximum < minimum):
        raise ValueError(
            f"text_length: minimum is {minimum} and maximum {maximum}, give 0 <= minimum <= maximum"
        )

    def test(table: pa.Table) -> pa.Array:
        segments = table["segments"]
        lengths = pc.utf8_length(pc.struct_field(pc.list_flatten(segments), "text"))
        records = pc.list_parent_indices(segments)
        total = np.bincount(records, weights=pc.fill_null(lengths, 0), minlength=len(table))
        is_long = total > (np.inf if maximum is None else maximum)
        too_long = pc.if_else(is_long, "text_too_long", pa.scalar(None, pa.string()))
        return pc.if_else(total < minimum, "text_too_short", too_long)

    return Filter("text_length", test, REASONS, max_drop)
