"""One step on one shard: call it, hold it to the rules of tables, move what it dropped into the ledger."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.counts import READ, Counts, counted, merged, tally
from pipelines.core.errors import StepError, StorageError
from pipelines.core.filter import Filter
from pipelines.core.ledger import RECORD_DROPPED, Links, link_rows, no_rows, record_rows
from pipelines.core.stage import RECORD_FIELDS, SHARD_KEY, Construct, Transform
from schemas.sample import KEY_PATTERN
from schemas.tables import DROPPED, REASON_PATTERN

FIXED = ("key", "source", "record")


@dataclass(frozen=True)
class ShardState:
    """What is known of a shard after some steps: survivors, the ledger so far, counts by stage."""

    table: pa.Table
    ledger: pa.Table = field(default_factory=no_rows)
    counts: Counts = field(default_factory=dict)


def admit(table: pa.Table, shard: str, num_records: int) -> ShardState:
    """The state of a shard just read; raises `StepError` if the source gave other rows than planned."""
    if not isinstance(table, pa.Table):
        raise StepError(READ, shard, f"the source returned {type(table).__name__}, not a table")
    if table.num_rows != num_records:
        raise StepError(
            READ,
            shard,
            f"the plan counts {num_records} records, the source read {table.num_rows}; did the "
            "input change since the build began?",
        )
    table = _normal(table, READ, shard, "the source")
    for name in FIXED:
        if table.column(name).null_count:
            raise StepError(READ, shard, f"the source left nulls in column '{name}'")
    keys = table.column("key")
    _all_match(keys, KEY_PATTERN, keys, READ, shard, "the source: key")
    _raise_doubled(keys, shard)
    return _settled(ShardState(table), None, table, READ, READ, shard, "the source")


def apply_step(
    state: ShardState, step: Transform | Filter, name: str, stage: str, shard: str
) -> ShardState:
    """The state after a step; raises `StepError` naming it if it raises or breaks a rule."""
    before = state.table.replace_schema_metadata({SHARD_KEY: shard.encode()})
    who = f"step '{name}'"
    with explained(stage, shard, who):
        after = _filtered(before, step) if isinstance(step, Filter) else step(before)
    if not isinstance(after, pa.Table):
        raise StepError(stage, shard, f"{who} returned {type(after).__name__}, not a table")
    _same_rows(before, after, stage, shard, who)
    after = _normal(after, stage, shard, who)
    label = f"{stage}/{step.name}" if isinstance(step, Filter) else stage
    return _settled(state, before, after, label, stage, shard, who)


def begin(state: ShardState, stage: str) -> ShardState:
    """The state with all that it holds counted as seen by a stage."""
    alive = int((~Links(state.table).is_dead).sum())
    seen = counted(stage, (state.table.num_rows, {}), (alive, {}))
    return replace(state, counts=merged(state.counts, seen))


@contextmanager
def explained(stage: str, shard: str, who: str) -> Iterator[None]:
    """Turn any exception of the block into a `StepError` that says where and who."""
    try:
        yield
    except (StepError, StorageError):
        raise
    except Exception as error:
        raise StepError(stage, shard, f"{who} raised {_words(error)}") from error


def step_name(step: Transform | Construct | Filter) -> str:
    """The name of a step for errors: of the filter, of what is constructed, of the function."""
    if isinstance(step, Filter | Construct):
        return step.name
    return getattr(step, "__name__", type(step).__name__)


def _filtered(table: pa.Table, step: Filter) -> pa.Table:
    reasons = step.reasons(table)
    if len(reasons) != table.num_rows:
        raise ValueError(f"{len(reasons)} reasons for {table.num_rows} rows")
    position = table.schema.get_field_index("drop_reason")
    return table.set_column(position, "drop_reason", reasons.cast(pa.string()))


def _words(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (at {Path(frame.filename).name}:{frame.lineno})"


def _same_rows(before: pa.Table, after: pa.Table, stage: str, shard: str, who: str) -> None:
    if after.num_rows != before.num_rows:
        raise StepError(
            stage,
            shard,
            f"{who} returned {after.num_rows} rows for {before.num_rows}; a step keeps every row "
            "and sets drop_reason on those that cannot go on",
        )
    for name in FIXED:
        if name not in after.column_names:
            raise StepError(stage, shard, f"{who} removed the column '{name}'")
        if after.column(name).type != before.column(name).type:
            kind = after.column(name).type
            raise StepError(stage, shard, f"{who} changed the type of '{name}' to {kind}")
        if not after.column(name).equals(before.column(name)):
            same = pc.fill_null(pc.equal(before.column(name), after.column(name)), False)
            row = pc.index(same, pa.scalar(False)).as_py()
            old, new = before.column(name)[row].as_py(), after.column(name)[row].as_py()
            raise StepError(
                stage, shard, f"{who} changed '{name}' of row {row}: {old!r} to {new!r}"
            )
    if "links" not in after.column_names and before.column("links").null_count < before.num_rows:
        raise StepError(stage, shard, f"{who} removed the column 'links'")


def _normal(table: pa.Table, stage: str, shard: str, who: str) -> pa.Table:
    """The table with every reserved column in its type; those that may be missing are added."""
    for wanted in RECORD_FIELDS:
        if wanted.name not in table.column_names:
            if wanted.name in FIXED:
                raise StepError(stage, shard, f"{who} gave no column '{wanted.name}'")
            table = table.append_column(wanted, pa.nulls(table.num_rows, wanted.type))
        position = table.schema.get_field_index(wanted.name)
        if position < 0:
            problem = f"{who} gave the column '{wanted.name}' twice (it is there from the start: replace it)"
            raise StepError(stage, shard, problem)
        if table.schema.field(position) != wanted:
            column = _cast(table.column(position), wanted, stage, shard, who)
            table = table.set_column(position, wanted, column)
    return table


def _cast(
    column: pa.ChunkedArray, wanted: pa.Field, stage: str, shard: str, who: str
) -> pa.ChunkedArray:
    problem = f"{who} gave '{wanted.name}' as {column.type}, expected {wanted.type}"
    # Arrow would turn numbers into digits.
    if pa.types.is_string(wanted.type) and pa.types.is_primitive(column.type):
        raise StepError(stage, shard, problem)
    try:
        return column.cast(wanted.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise StepError(stage, shard, f"{problem}: {error}") from error


def _settled(
    state: ShardState,
    before: pa.Table | None,
    after: pa.Table,
    label: str,
    stage: str,
    shard: str,
    who: str,
) -> ShardState:
    """Take dropped records out; write them, their living links and newly dead links down."""
    keys, reasons = after.column("key"), after.column("drop_reason")
    whole = label != stage or before is None
    _all_match(reasons, REASON_PATTERN, keys, stage, shard, f"{who}: drop_reason")
    links = Links(after)
    _all_match(links.reason, REASON_PATTERN, links.url, stage, shard, f"{who}: reason of link")
    was_dead = _matched(before, after, links, stage, shard, who)
    dropped = pc.is_valid(reasons).to_numpy(zero_copy_only=False)
    dies = links.is_dead & ~was_dead
    goes = ~links.is_dead & dropped[links.row]
    lost = after.filter(pa.array(dropped))
    rows = [
        record_rows(lost, label, DROPPED),
        link_rows(after, links, dies, label, DROPPED, None),
        link_rows(after, links, goes, label, DROPPED, RECORD_DROPPED),
    ]
    gone = tally(links.reason.filter(pa.array(dies)))
    if goes.any():
        gone[RECORD_DROPPED] = int(goes.sum())
    num_old = len(Links(before).slot) if before is not None else 0
    # A stage has seen its records, and the links it was given, when it began (see `begin`).
    seen = (after.num_rows, int((~was_dead).sum())) if whole else (0, len(links.slot) - num_old)
    counts = counted(label, (seen[0], tally(lost.column("drop_reason"))), (seen[1], gone))
    return ShardState(
        table=after.filter(pa.array(~dropped)) if dropped.any() else after,
        ledger=pa.concat_tables([state.ledger, *(r for r in rows if r.num_rows)]),
        counts=merged(state.counts, counts),
    )


def _matched(
    before: pa.Table | None, after: pa.Table, links: Links, stage: str, shard: str, who: str
) -> np.ndarray:
    """For each link after the step whether it was dead before; raises if one was lost or changed."""
    if links.slot.null_count or (len(links.slot) and pc.min(links.slot).as_py() < 0):
        raise StepError(stage, shard, f"{who} gave a link without a slot, or with one below 0")
    code = links.code
    order = np.argsort(code, kind="stable")
    if len(code) > 1 and (code[order][1:] == code[order][:-1]).any():
        row = int(code[order][1:][code[order][1:] == code[order][:-1]][0] >> 32)
        key = after.column("key")[row].as_py()
        raise StepError(stage, shard, f"{who} doubled a slot in the links of record '{key}'")
    was_dead = np.zeros(len(code), bool)
    if before is None:
        return was_dead
    old = Links(before)
    place = np.searchsorted(code[order], old.code)
    found = place < len(code)
    found[found] = code[order][place[found]] == old.code[found]
    _raise_first(~found, old, before, stage, shard, f"{who} removed link")
    here = order[place] if len(code) else place
    same_url = pc.equal(links.url.take(pa.array(here)), old.url)
    changed = ~pc.fill_null(same_url, False).to_numpy(zero_copy_only=False)
    both_null = pc.is_null(old.url).to_numpy(zero_copy_only=False)
    _raise_first(changed & ~both_null, old, before, stage, shard, f"{who} changed the url of link")
    same = pc.fill_null(pc.equal(links.reason.take(pa.array(here)), old.reason), False)
    revived = old.is_dead & ~same.to_numpy(zero_copy_only=False)
    _raise_first(revived, old, before, stage, shard, f"{who} revived or renamed the drop of link")
    was_dead[here[old.is_dead]] = True
    return was_dead


def _raise_first(
    bad: np.ndarray, links: Links, table: pa.Table, stage: str, shard: str, what: str
) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        key = table.column("key")[int(links.row[first])].as_py()
        slot = links.slot[first].as_py()
        raise StepError(stage, shard, f"{what} {slot} of record '{key}'")


def _all_match(
    values: pa.Array | pa.ChunkedArray,
    pattern: str,
    names: pa.Array | pa.ChunkedArray,
    stage: str,
    shard: str,
    what: str,
) -> None:
    good = pc.fill_null(pc.match_substring_regex(values, pattern), True)
    row = pc.index(good, pa.scalar(False)).as_py()
    if row >= 0:
        value, name = values[row].as_py(), names[row].as_py()
        raise StepError(stage, shard, f"{what} {value!r} (of {name!r}) is not {pattern}")


def _raise_doubled(keys: pa.ChunkedArray, shard: str) -> None:
    if len(pc.unique(keys)) == len(keys):
        return
    counted: list[Mapping[str, Any]] = pc.value_counts(keys).to_pylist()
    doubled = [c["values"] for c in counted if c["counts"] > 1][:5]
    raise StepError(READ, shard, f"the source gave the same key to several records: {doubled}")
