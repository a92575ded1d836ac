"""Filter: samples with enough text, and not too much."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.columns import SegmentColumns
from pipelines.core.pipeline import Filter, Reason

REASONS = {
    "text_too_short": Reason("The text has too few characters or words."),
    "text_too_long": Reason("The text has too many characters or words."),
}


def text_length(
    minimum: int = 1,
    maximum: int | None = None,
    min_words: int = 0,
    max_words: int | None = None,
    max_drop: float = 0.9,
) -> Filter:
    """Samples whose texts have `minimum` to `maximum` characters, and `min_words` to `max_words` words, in total."""
    for name, low, high in (("", minimum, maximum), ("words: ", min_words, max_words)):
        if low < 0 or (high is not None and high < low):
            raise ValueError(
                f"text_length: {name}minimum is {low} and maximum {high}, give 0 <= minimum <= maximum"
            )

    def test(table: pa.Table) -> pa.Array:
        segments = SegmentColumns.of(table)
        texts = segments.field("text")
        num_characters = _total(table, segments, pc.utf8_length(texts))
        is_short, is_long = num_characters < minimum, num_characters > _bound(maximum)
        if min_words or max_words is not None:
            words = pc.count_substring_regex(texts, r"[^\s]+")
            num_words = _total(table, segments, words)
            is_short, is_long = (
                is_short | (num_words < min_words),
                is_long | (num_words > _bound(max_words)),
            )
        too_long = pc.if_else(is_long, "text_too_long", pa.scalar(None, pa.string()))
        return pc.if_else(is_short, "text_too_short", too_long)

    return Filter("text_length", test, REASONS, max_drop)


def _total(table: pa.Table, segments: SegmentColumns, counts: pa.Array) -> np.ndarray:
    weights = pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)
    return np.bincount(segments.row, weights=weights, minlength=len(table))


def _bound(maximum: int | None) -> float:
    return np.inf if maximum is None else maximum
