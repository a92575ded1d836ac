"""Filter: samples by a word in their metadata, such as LAION's NSFW tag or a licence."""

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from pipelines.columns import metas_of, verdicts
from pipelines.core.pipeline import Filter, Reason

REASONS = {
    "tag_unwanted": Reason("The value of the metadata field is not in `allowed`."),
    "tag_missing": Reason("The sample has no such field, and `missing` is drop."),
}


def tag(
    field: str = "nsfw",
    allowed: tuple[str, ...] = ("UNLIKELY",),
    missing: Literal["keep", "drop"] = "drop",
    max_drop: float = 0.9,
) -> Filter:
    """Samples whose metadata field `field` has one of the values `allowed`; case is ignored."""
    if not field or not allowed:
        raise ValueError(
            "tag: give a field and allowed values, such as field=nsfw,allowed=UNLIKELY+UNSURE"
        )
    name, words = field.casefold(), {value.casefold() for value in allowed}

    def verdict(meta: Mapping[str, Any]) -> tuple[str, str | None] | None:
        values = [v for k, v in meta.items() if k.casefold() == name and v not in (None, "")]
        if not values:
            return ("tag_missing", field) if missing == "drop" else None
        value = str(values[0])
        return None if value.casefold() in words else ("tag_unwanted", f"{field} is {value[:80]}")

    def test(table: pa.Table) -> pa.Array:
        return verdicts([verdict(meta) for meta in metas_of(table)])

    return Filter("tag", test, REASONS, max_drop)
