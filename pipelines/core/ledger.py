"""Rows of the ledger from tables of records: who was dropped where, and who was kept."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tables import DROPPED, KEPT, LEDGER

RECORD_DROPPED = "record_dropped"
"""The reason of a link that was alive when its record was dropped."""


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
