"""Filter: samples by a score that their metadata brings: similarity, NSFW, watermark, aesthetic."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from pipelines.columns import metas_of, verdicts
from pipelines.core.pipeline import Filter, Reason

REASONS = {
    "score_too_low": Reason("The score is below the minimum."),
    "score_too_high": Reason("The score is above the maximum."),
    "score_missing": Reason("The sample has no such score, and `missing` is drop."),
}
ALIASES = {"nsfw": "punsafe", "watermark": "pwatermark"}
"""Words for scores under the names that LAION gives them."""


def score(
    name: str = "similarity",
    min: float | None = None,
    max: float | None = None,
    missing: Literal["keep", "drop"] = "drop",
    max_drop: float = 0.9,
) -> Filter:
    """Samples whose score `name` is from `min` to `max`; `missing` says whether samples without it are kept.

    Scores are those in `meta["scores"]`, else a number of that name in `meta`. LAION's: `similarity` (CLIP, a cosine),
    `punsafe` or `nsfw` and `pwatermark` or `watermark` (probabilities), `aesthetic` (1 to 10).
    """
    if min is None and max is None:
        raise ValueError(
            "score: give min or max (score:name=similarity,min=0.3 or score:name=nsfw,max=0.5)"
        )
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    if low > high:
        raise ValueError(f"score: min {low:g} is above max {high:g}")
    wanted = ALIASES.get(name, name)

    def verdict(meta: Mapping[str, Any]) -> tuple[str, str | None] | None:
        value = _score(meta, wanted)
        if value is None:
            return ("score_missing", wanted) if missing == "drop" else None
        if value < low:
            return "score_too_low", f"{wanted} {value:.6g} is below {low:g}"
        if value > high:
            return "score_too_high", f"{wanted} {value:.6g} is above {high:g}"
        return None

    def test(table: pa.Table) -> pa.Array:
        return verdicts([verdict(meta) for meta in metas_of(table)])

    return Filter(f"score_{wanted}", test, REASONS, max_drop)


def _score(meta: Mapping[str, Any], name: str) -> float | None:
    scores = meta.get("scores")
    value: Any = scores.get(name, meta.get(name)) if isinstance(scores, Mapping) else meta.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
