"""One step on one shard: call it, hold it to the rules of tables, move what it dropped into the ledger."""

from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.counts import READ, Counts, counted, merged, tally
from pipelines.core.filter import Filter
from pipelines.core.ledger import RECORD_DROPPED, Links, link_rows, no_rows, record_rows
from pipelines.core.link_rules import dead_before
from pipelines.core.row_rules import (
    FIXED,
    Place,
    all_different,
    all_match,
    same_rows,
    with_reserved,
)
from pipelines.core.stage import SHARD_KEY, Construct, Transform
from schemas.sample import KEY_PATTERN
from schemas.tables import DROPPED, REASON_PATTERN


@dataclass(frozen=True)
class ShardState:
    """What is known of a shard after some steps: survivors, the ledger so far, counts by stage."""

    table: pa.Table
    ledger: pa.Table = field(default_factory=no_rows)
    counts: Counts = field(default_factory=dict)


def admit(table: pa.Table, shard: str, num_records: int) -> ShardState:
    """The state of a shard just read; raises `StepError` if the source gave other rows than planned."""
    place = Place(READ, shard, "the source")
    if not isinstance(table, pa.Table):
        raise place.error(f"returned {type(table).__name__}, not a table")
    if table.num_rows != num_records:
        raise place.error(
            f"read {table.num_rows} records, the plan counts {num_records}; did the input change "
            "since the build began?"
        )
    table = with_reserved(table, place)
    for name in FIXED:
        if table.column(name).null_count:
            raise place.error(f"left nulls in column '{name}'")
    keys = table.column("key")
    all_match(keys, KEY_PATTERN, keys, place, "key")
    all_different(keys, place)
    return _settled(ShardState(table), None, table, READ, place)


def begin(state: ShardState, stage: str) -> ShardState:
    """The state with all that it holds counted as seen by a stage."""
    alive = int((~Links(state.table).is_dead).sum())
    seen = counted(stage, (state.table.num_rows, {}), (alive, {}))
    return replace(state, counts=merged(state.counts, seen))


def apply_step(
    state: ShardState, step: Transform | Filter, name: str, stage: str, shard: str
) -> ShardState:
    """The state after a step; raises `StepError` naming it if it raises or breaks a rule."""
    place = Place(stage, shard, f"step '{name}'")
    before = state.table.replace_schema_metadata({SHARD_KEY: shard.encode()})
    with place.explained():
        after = _filtered(before, step) if isinstance(step, Filter) else step(before)
    if not isinstance(after, pa.Table):
        raise place.error(f"returned {type(after).__name__}, not a table")
    same_rows(before, after, place)
    label = f"{stage}/{step.name}" if isinstance(step, Filter) else stage
    return _settled(state, before, with_reserved(after, place), label, place)


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


def _settled(
    state: ShardState, before: pa.Table | None, after: pa.Table, label: str, place: Place
) -> ShardState:
    """Take dropped records out; write them, their living links and newly dead links down."""
    reasons, links = after.column("drop_reason"), Links(after)
    all_match(reasons, REASON_PATTERN, after.column("key"), place, "drop_reason")
    all_match(links.reason, REASON_PATTERN, links.url, place, "reason of a link")
    was_dead = dead_before(before, after, place)
    is_dropped = pc.is_valid(reasons).to_numpy(zero_copy_only=False)
    dies = links.is_dead & ~was_dead
    goes = ~links.is_dead & is_dropped[links.row]
    lost = after.filter(pa.array(is_dropped))
    rows = [
        record_rows(lost, label, DROPPED),
        link_rows(after, links, dies, label, DROPPED, None),
        link_rows(after, links, goes, label, DROPPED, RECORD_DROPPED),
    ]
    gone = tally(links.reason.filter(pa.array(dies)))
    if goes.any():
        gone[RECORD_DROPPED] = int(goes.sum())
    if label == place.stage and before is not None:
        # A stage has counted what it was given when it began (see `begin`).
        seen = (0, len(links.slot) - len(Links(before).slot))
    else:
        seen = (after.num_rows, int((~was_dead).sum()))
    counts = counted(label, (seen[0], tally(lost.column("drop_reason"))), (seen[1], gone))
    return ShardState(
        table=after.filter(pa.array(~is_dropped)) if lost.num_rows else after,
        ledger=pa.concat_tables([state.ledger, *(r for r in rows if r.num_rows)]),
        counts=merged(state.counts, counts),
    )
