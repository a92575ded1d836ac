"""Rows of the ledger from tables of records: who was dropped where, and who was kept.

Counts by stage and filter: how many records and links each saw, and dropped for which reason.

The form is that of the manifest's field `stages`: by label (`<stage>`, or `<stage>/<filter>`) a mapping of
`seen`, `dropped` by reason, and `links` with the same two.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import (
    RECORD_DROPPED,
    Barrier,
    Filter,
    Stage,
)
from schemas.tables import DROPPED, KEPT, LEDGER

ABOUT_KEY = b"emu.shard"
"""Metadata of a published ledger: the shard's entry in the manifest and its counts by stage."""


class Links:
    """The links of a table, flattened: for each its row in the table, slot, url, reason, detail."""

    def __init__(self, table: pa.Table) -> None:
        column = table.column("links").combine_chunks()
        flat = pc.list_flatten(column)
        self.row: np.ndarray = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        self.slot: pa.Array = pc.struct_field(flat, "slot")
        self.url: pa.Array = pc.struct_field(flat, "url")
        self.reason: pa.Array = pc.struct_field(flat, "reason")
        self.detail: pa.Array = pc.struct_field(flat, "detail")

    @property
    def code(self) -> np.ndarray:
        """One number for each (row, slot)."""
        slots = self.slot.to_numpy(zero_copy_only=False).astype(np.int64)
        return (self.row.astype(np.int64) << 32) | slots

    @property
    def is_dead(self) -> np.ndarray:
        """True where a link has a reason."""
        return pc.is_valid(self.reason).to_numpy(zero_copy_only=False)


def record_rows(table: pa.Table, stage: str, status: str) -> pa.Table:
    """A ledger row for each record of the table; the reasons are its `drop_reason`s."""
    count = table.num_rows
    kept = status == KEPT
    return _rows(
        table,
        slot=pa.nulls(count, pa.int32()),
        url=pa.nulls(count, pa.string()),
        stage=stage,
        status=status,
        reason=pa.nulls(count, pa.string()) if kept else table.column("drop_reason"),
        detail=pa.nulls(count, pa.string()) if kept else table.column("drop_detail"),
    )


def link_rows(
    table: pa.Table, links: Links, chosen: np.ndarray, stage: str, status: str, reason: str | None
) -> pa.Table:
    """A ledger row for each chosen link; with `reason` null, dropped links have their own."""
    mask = pa.array(chosen)
    count = int(chosen.sum())
    own = status == DROPPED and reason is None
    return _rows(
        table.select(["key", "source", "record"]).take(pa.array(links.row[chosen])),
        slot=links.slot.filter(mask),
        url=links.url.filter(mask),
        stage=stage,
        status=status,
        reason=links.reason.filter(mask) if own else pa.array([reason] * count, pa.string()),
        detail=links.detail.filter(mask) if own else pa.nulls(count, pa.string()),
    )


def kept_rows(table: pa.Table, stage: str) -> pa.Table:
    """The rows of survivors: `kept` for each record and each of its living links."""
    links = Links(table)
    alive = link_rows(table, links, ~links.is_dead, stage, KEPT, None)
    return pa.concat_tables([record_rows(table, stage, KEPT), alive])


def in_order(ledger: pa.Table) -> pa.Table:
    """The ledger in its order on disk: by source and record, a record before its links."""
    place = pc.fill_null(ledger.column("slot"), -1)
    sortable = ledger.select(["source", "record", "key"]).append_column("place", place)
    keys = [(name, "ascending") for name in sortable.column_names]
    order = pc.sort_indices(sortable, sort_keys=keys)
    return ledger.take(order)


def no_rows() -> pa.Table:
    """An empty ledger."""
    return LEDGER.schema.empty_table()


def _rows(
    records: pa.Table,
    slot: pa.Array,
    url: pa.Array,
    stage: str,
    status: str,
    reason: pa.Array | pa.ChunkedArray,
    detail: pa.Array | pa.ChunkedArray,
) -> pa.Table:
    count = records.num_rows
    columns = {
        "key": records.column("key"),
        "slot": slot,
        "source": records.column("source"),
        "record": records.column("record"),
        "url": url,
        "stage": pa.array([stage] * count, pa.string()),
        "status": pa.array([status] * count, pa.string()),
        "reason": reason,
        "detail": detail,
    }
    return pa.table([columns[name] for name in LEDGER.schema.names], schema=LEDGER.schema)


Counts = dict[str, Any]
READ = "read"
"""The word, in ledger and counts, for what the source itself could not read."""
READ_BOUND = 0.9


def tally(reasons: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """How often each reason occurs, by reason."""
    counted = pc.value_counts(pc.drop_null(reasons)).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def counted(
    label: str,
    records: tuple[int, Mapping[str, int]],
    links: tuple[int, Mapping[str, int]],
) -> Counts:
    """Counts of one label from what was seen and dropped of records and of links."""
    return {
        label: {
            "seen": records[0],
            "dropped": dict(records[1]),
            "links": {"seen": links[0], "dropped": dict(links[1])},
        }
    }


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Counts:
    """The sum of two nested mappings of counts."""
    total = dict(one)
    for name, value in other.items():
        if isinstance(value, Mapping):
            total[name] = merged(total.get(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def alarms(
    counts: Mapping[str, Any], stages: Sequence[Stage | Barrier], total: int, kept: int
) -> tuple[str, ...]:
    """In words, every stage and filter that dropped more than its bound over the whole dataset."""
    found = [a for label, bound in _bounds(stages) for a in _exceeded(label, bound, counts)]
    if not total:
        return ("the input holds no records",)
    if not kept:
        found.append(f"none of {total} records was kept")
    return tuple(found)


def _bounds(stages: Sequence[Stage | Barrier]) -> Iterator[tuple[str, float]]:
    yield READ, READ_BOUND
    for stage in stages:
        yield stage.name, stage.max_drop
        for step in stage.steps if isinstance(stage, Stage) else ():
            if isinstance(step, Filter):
                yield f"{stage.name}/{step.name}", step.max_drop


def _exceeded(label: str, bound: float, counts: Mapping[str, Any]) -> Iterator[str]:
    found = counts.get(label, {})
    for noun, part in (("records", found), ("links", found.get("links", {}))):
        dropped = {r: n for r, n in part.get("dropped", {}).items() if r != RECORD_DROPPED}
        seen, lost = part.get("seen", 0), sum(dropped.values())
        if lost > bound * seen:
            most = ", ".join(f"{r}: {n}" for r, n in sorted(dropped.items(), key=_by_count)[:3])
            yield f"'{label}' dropped {lost} of {seen} {noun} (bound {bound:g}); {most}"


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
