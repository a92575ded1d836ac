"""Rules for what a step returns, and the ledger rows that follow from it.

Rules for records: the same rows in the same order, the reserved columns in their types, reasons of one word. Rules for
links: a step may add and drop them, never remove, change or undrop one. A broken rule is a `StepError`.

Ledger rows: which records and links were dropped where, and which were kept. Counts: how many each stage and filter saw
and dropped, in the form of the manifest's field `stages`: by label (`<stage>`, or `<stage>/<filter>`) a mapping of
`seen`, `dropped` by reason, and `links` with the same two.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import (
    RECORD_DROPPED,
    RECORD_FIELDS,
    Barrier,
    Filter,
    Reasons,
    Stage,
    StepError,
)
from pipelines.core.storage import StorageError
from schemas.tables import DROPPED, KEPT, LEDGER

FIXED = ("key", "source", "record")
SHOWN = 5
ABOUT_KEY = b"emu.shard"
"""Metadata of a published ledger: the shard's entry in the manifest and its counts by stage."""


@dataclass(frozen=True)
class ErrorContext:
    """What is running, on which stage and shard: the beginning of an error."""

    stage: str
    shard: str
    who: str
    """Such as `step 'parse'` or `the source`."""

    def error(self, problem: str) -> StepError:
        """An error of this context."""
        return StepError(self.stage, self.shard, f"{self.who} {problem}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn any exception of the block into an error of this context."""
        try:
            yield
        except (StepError, StorageError):
            raise
        except Exception as error:
            raise self.error(f"raised {_words(error)}") from error


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
    def is_dropped(self) -> np.ndarray:
        """True where a link has a reason."""
        return pc.is_valid(self.reason).to_numpy(zero_copy_only=False)


def same_rows(before: pa.Table, after: pa.Table, context: ErrorContext) -> None:
    """Raise `StepError` if rows were lost, added, moved or given another key, source or number."""
    if after.num_rows != before.num_rows:
        raise context.error(
            f"returned {after.num_rows} rows for {before.num_rows}; a step keeps every row and "
            "sets drop_reason on those that cannot go on"
        )
    for name in FIXED:
        if name not in after.column_names:
            raise context.error(f"removed the column '{name}'")
        old, new = before.column(name), after.column(name)
        if new.type != old.type:
            raise context.error(f"changed the type of '{name}' to {new.type}")
        if not new.equals(old):
            row = pc.index(pc.fill_null(pc.equal(old, new), False), pa.scalar(False)).as_py()
            changed = f"{old[row].as_py()!r} to {new[row].as_py()!r}"
            raise context.error(f"changed '{name}' of row {row}: {changed}")
    if "links" not in after.column_names and before.column("links").null_count < before.num_rows:
        raise context.error("removed the column 'links'")


def with_reserved(table: pa.Table, context: ErrorContext) -> pa.Table:
    """The table with every reserved column in its type; those that may be missing are added."""
    for wanted in RECORD_FIELDS:
        if wanted.name not in table.column_names:
            if wanted.name in FIXED:
                raise context.error(f"gave no column '{wanted.name}'")
            table = table.append_column(wanted, pa.nulls(table.num_rows, wanted.type))
        position = table.schema.get_field_index(wanted.name)
        if position < 0:
            raise context.error(
                f"gave the column '{wanted.name}' twice (it exists from the start: replace it)"
            )
        if table.schema.field(position) != wanted:
            column = _cast(table.column(position), wanted, context)
            table = table.set_column(position, wanted, column)
    return table


def all_match(
    values: pa.Array | pa.ChunkedArray,
    pattern: str,
    names: pa.Array | pa.ChunkedArray,
    context: ErrorContext,
    what: str,
) -> None:
    """Raise `StepError` with the first value that is neither null nor of the pattern."""
    good = pc.fill_null(pc.match_substring_regex(values, pattern), True)
    row = pc.index(good, pa.scalar(False)).as_py()
    if row >= 0:
        shown = f"{values[row].as_py()!r} (of {names[row].as_py()!r})"
        raise context.error(f"gave the {what} {shown}, which is not {pattern}")


def all_declared(
    words: pa.Array | pa.ChunkedArray,
    names: pa.Array | pa.ChunkedArray,
    declared: Reasons,
    context: ErrorContext,
    what: str,
) -> None:
    """Raise `StepError` with the first reason that its step does not declare, so that each word is explained."""
    known = pa.array(list(declared), pa.string())
    good = pc.or_(pc.is_null(words), pc.is_in(words, value_set=known))
    row = pc.index(good, pa.scalar(False)).as_py()
    if row >= 0:
        shown = f"{words[row].as_py()!r} (of {names[row].as_py()!r})"
        raise context.error(
            f"gave the {what} {shown}, which is not among the reasons that it declares: {sorted(declared)}"
        )


def all_different(keys: pa.ChunkedArray, context: ErrorContext) -> None:
    """Raise `StepError` with the first keys that occur more than once."""
    if len(pc.unique(keys)) < len(keys):
        counted = pc.value_counts(keys).to_pylist()
        doubled = [c["values"] for c in counted if c["counts"] > 1][:SHOWN]
        raise context.error(f"gave the same key to several records: {doubled}")


def _cast(column: pa.ChunkedArray, wanted: pa.Field, context: ErrorContext) -> pa.ChunkedArray:
    problem = f"gave '{wanted.name}' as {column.type}, expected {wanted.type}"
    # Arrow would turn numbers into digits.
    if pa.types.is_string(wanted.type) and pa.types.is_primitive(column.type):
        raise context.error(problem)
    try:
        return column.cast(wanted.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise context.error(f"{problem}: {error}") from error


def _words(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (at {Path(frame.filename).name}:{frame.lineno})"


def dropped_before(before: pa.Table | None, after: pa.Table, context: ErrorContext) -> np.ndarray:
    """For each link after a step whether it was dropped before it; `before` is null for a source.

    Raises `StepError` naming the first link that was removed, duplicated, changed or undropped.
    """
    links = Links(after)
    _check_slots(links, after, context)
    was_dropped = np.zeros(len(links.slot), bool)
    if before is None:
        return was_dropped
    old = Links(before)
    here = _found(old, links, before, context)
    _check_unchanged(old, links, here, before, context)
    was_dropped[here[old.is_dropped]] = True
    return was_dropped


def _check_slots(links: Links, table: pa.Table, context: ErrorContext) -> None:
    if links.slot.null_count or (len(links.slot) and pc.min(links.slot).as_py() < 0):
        raise context.error("gave a link without a slot, or with one below 0")
    code = np.sort(links.code)
    doubled = np.flatnonzero(code[1:] == code[:-1])
    if len(doubled):
        key = table.column("key")[int(code[doubled[0]] >> 32)].as_py()
        raise context.error(f"gave a slot twice in the links of record '{key}'")


def _found(old: Links, new: Links, before: pa.Table, context: ErrorContext) -> np.ndarray:
    """For each old link its position among the new ones."""
    code = new.code
    order = np.argsort(code, kind="stable")
    position = np.searchsorted(code[order], old.code)
    is_there = position < len(code)
    is_there[is_there] = code[order][position[is_there]] == old.code[is_there]
    _raise_first(~is_there, old, before, context, "removed link")
    return order[position]


def _check_unchanged(
    old: Links, new: Links, here: np.ndarray, before: pa.Table, context: ErrorContext
) -> None:
    urls, reasons = new.url.take(pa.array(here)), new.reason.take(pa.array(here))
    same_url = _true(pc.equal(urls, old.url)) | (_null(urls) & _null(old.url))
    _raise_first(~same_url, old, before, context, "changed the url of link")
    undropped = old.is_dropped & ~_true(pc.equal(reasons, old.reason))
    _raise_first(undropped, old, before, context, "changed the drop reason of link")


def _true(values: pa.Array) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _null(values: pa.Array) -> np.ndarray:
    return pc.is_null(values).to_numpy(zero_copy_only=False)


def _raise_first(
    bad: np.ndarray, links: Links, table: pa.Table, context: ErrorContext, what: str
) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        key = table.column("key")[int(links.row[first])].as_py()
        raise context.error(f"{what} {links.slot[first].as_py()} of record '{key}'")


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
    """The rows of what is left: `kept` for each record and each of its links that was not dropped."""
    links = Links(table)
    kept = link_rows(table, links, ~links.is_dropped, stage, KEPT, None)
    return pa.concat_tables([record_rows(table, stage, KEPT), kept])


def in_order(ledger: pa.Table) -> pa.Table:
    """The ledger in its order on disk: by source and record, a record before its links."""
    slot = pc.fill_null(ledger.column("slot"), -1)
    sortable = ledger.select(["source", "record", "key"]).append_column("slot", slot)
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
    if not kept and all(stage.max_drop < 1.0 for stage in stages):  # 1: may drop everything
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
