"""Operators and runners: what the engine does with one shard at each stage, and where it runs.

A stage applies its steps to the table of a shard; each step is checked against the rules of `contracts`, and what
it dropped moves from the table into the ledger. A barrier applies what it planned over the whole dataset. Publishing
stands in `publishing`. Each operator commits its output before the next one reads it, so that a runner only has to
pass on the names of shards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.contracts import (
    FIXED,
    READ,
    ErrorContext,
    Links,
    all_declared,
    all_different,
    all_match,
    counted,
    dropped_before,
    link_rows,
    merged,
    record_rows,
    same_rows,
    tally,
    with_reserved,
)
from pipelines.core.division import Divide, as_parts, under_parts
from pipelines.core.pipeline import (
    RECORD_DROPPED,
    SHARD_KEY,
    Ask,
    Barrier,
    Construct,
    Extension,
    Filter,
    PerShard,
    Reasons,
    Resources,
    ShardPlan,
    Source,
    Stage,
    Transform,
    construct_of,
    reasons_of,
    step_name,
)
from pipelines.core.storage import Storage
from pipelines.core.workspace import ShardState, Workspace
from schemas.sample import KEY_PATTERN
from schemas.tables import DROPPED, REASON_PATTERN


class ShardWork(Protocol):
    """One stage, ready to work on one shard after another."""

    def __call__(self, shard: ShardPlan) -> int:
        """Do what is missing for the shard, commit it, and return how many records it has now."""
        ...

    def close(self) -> None:
        """Release what the steps hold (sessions, models)."""
        ...


@dataclass(frozen=True)
class Operator:
    """A stage as a runner sees it: its name, what it needs, and how to open it on a worker."""

    name: str
    resources: Resources
    open: Callable[..., ShardWork]
    """Without arguments, or with one `Ask` for each of `shared`."""
    shared: tuple[Callable[[], Callable[[Any], Any]], ...] = ()
    """What all workers of the stage share, of each of its steps that share something (see `Construct`)."""


class Runner(Protocol):
    """Puts shards through operators."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield name and number of records of each shard when the last operator is done with it.

        Every shard passes the operators in order; shards come in any order. An exception of a step
        arrives as `StepError`.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """Everything in this process, one shard after the other."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in order."""
        with ExitStack() as stack:
            works = [stack.enter_context(closing(o.open())) for o in operators]
            for shard in shards:
                num_records = 0
                for work in works:
                    num_records = work(shard)
                yield shard.name, num_records


def admit(table: pa.Table, shard: str, num_records: int | None, declared: Reasons) -> ShardState:
    """The state of a shard just read; raises `StepError` if the source gave other rows than planned."""
    context = ErrorContext(READ, shard, "the source")
    if not isinstance(table, pa.Table):
        raise context.error(f"returned {type(table).__name__}, not a table")
    if num_records is not None and table.num_rows != num_records:
        raise context.error(
            f"read {table.num_rows} records, the plan counts {num_records}; did the input change "
            "since the build began?"
        )
    table = with_reserved(table, context)
    for name in FIXED:
        if table.column(name).null_count:
            raise context.error(f"left nulls in column '{name}'")
    keys = table.column("key")
    all_match(keys, KEY_PATTERN, keys, context, "key")
    all_different(keys, context)
    return _move_dropped(ShardState(table), None, table, READ, context, declared)


def count_seen(state: ShardState, stage: str) -> ShardState:
    """The state with all its records and undropped links counted as seen by a stage."""
    num_links = int((~Links(state.table).is_dropped).sum())
    seen = counted(stage, (state.table.num_rows, {}), (num_links, {}))
    return replace(state, counts=merged(state.counts, seen))


@dataclass(frozen=True)
class Step:
    """A step that is ready to run, with the reasons that it may set."""

    name: str
    run: Transform | Filter
    reasons: Reasons


def apply_step(state: ShardState, step: Step, stage: str, shard: str) -> ShardState:
    """The state after a step; raises `StepError` naming it if it raises or breaks a rule."""
    context = ErrorContext(stage, shard, f"step '{step.name}'")
    before = state.table.replace_schema_metadata({SHARD_KEY: shard.encode()})
    with context.explained():
        run = step.run
        after = _filtered(before, run) if isinstance(run, Filter) else run(before)
    if not isinstance(after, pa.Table):
        raise context.error(f"returned {type(after).__name__}, not a table")
    if isinstance(run, Divide):
        num_more = after.num_rows - before.num_rows
        before = as_parts(before, after, context)
        more = counted(stage, (num_more, {}), (0, {}))
        ledger = under_parts(state.ledger, before, after)
        state = replace(state, ledger=ledger, counts=merged(state.counts, more))
    else:
        same_rows(before, after, context)
    label = f"{stage}/{run.name}" if isinstance(run, Filter) else stage
    return _move_dropped(state, before, with_reserved(after, context), label, context, step.reasons)


def _filtered(table: pa.Table, step: Filter) -> pa.Table:
    assert not isinstance(step.test, Construct), step.name
    found = step.test(table)
    if len(found) != table.num_rows:
        raise ValueError(f"{len(found)} reasons for {table.num_rows} rows")
    is_struct = pa.types.is_struct(found.type)
    for name in ("reason", "detail") if is_struct else ("reason",):
        values = pc.struct_field(found, name) if is_struct else found
        position = table.schema.get_field_index(f"drop_{name}")
        table = table.set_column(position, f"drop_{name}", values.cast(pa.string()))
    return table


def _move_dropped(
    state: ShardState,
    before: pa.Table | None,
    after: pa.Table,
    label: str,
    context: ErrorContext,
    declared: Reasons,
) -> ShardState:
    """Move dropped records, their other links and newly dropped links from the table into the ledger."""
    reasons, links = after.column("drop_reason"), Links(after)
    all_match(reasons, REASON_PATTERN, after.column("key"), context, "drop_reason")
    all_match(links.reason, REASON_PATTERN, links.url, context, "reason of a link")
    was_dropped = dropped_before(before, after, context)
    record_dropped = pc.is_valid(reasons).to_numpy(zero_copy_only=False)
    # Links that this step dropped, and links dropped only because their record was.
    by_itself = links.is_dropped & ~was_dropped
    new = pa.array(by_itself)
    all_declared(reasons, after.column("key"), declared, context, "drop_reason")
    all_declared(
        links.reason.filter(new), links.url.filter(new), declared, context, "reason of a link"
    )
    with_record = ~links.is_dropped & record_dropped[links.row]
    lost = after.filter(pa.array(record_dropped))
    rows = [
        record_rows(lost, label, DROPPED),
        link_rows(after, links, by_itself, label, DROPPED, None),
        link_rows(after, links, with_record, label, DROPPED, RECORD_DROPPED),
    ]
    dropped = tally(links.reason.filter(new))
    if with_record.any():
        dropped[RECORD_DROPPED] = int(with_record.sum())
    if label == context.stage and before is not None:
        # A stage has counted what it was given before its first step (`count_seen`).
        seen = (0, len(links.slot) - len(Links(before).slot))
    else:
        seen = (after.num_rows, int((~was_dropped).sum()))
    counts = counted(label, (seen[0], tally(lost.column("drop_reason"))), (seen[1], dropped))
    return ShardState(
        table=after.filter(pa.array(~record_dropped)) if lost.num_rows else after,
        ledger=pa.concat_tables([state.ledger, *(r for r in rows if r.num_rows)]),
        counts=merged(state.counts, counts),
    )


class StageWork:
    """A stage on one shard after another; its transforms are constructed once."""

    def __init__(
        self, workspace: Workspace, source: Source, stage: Stage, level: int, *asks: Ask
    ) -> None:
        self._workspace, self._source, self._stage, self._level = workspace, source, stage, level
        left = iter(asks)
        self._steps = [
            Step(step_name(s), _constructed(s, stage.name, left), reasons_of(s))
            for s in stage.steps
        ]

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the stage's output for a shard, unless it or a later one is there already."""
        if self._workspace.level_of(shard.name) >= self._level:
            return 0
        return _commit(self._workspace, self._level, shard, self.state_of(shard))

    def state_of(self, shard: ShardPlan) -> ShardState:
        """The state of a shard after the stage, which is not committed."""
        state = load_input(self._workspace, self._source, shard, self._level)
        return _advance(shard, state, self._stage.name, self._steps)

    def close(self) -> None:
        """Close the transforms and tests that have a `close`."""
        for step in self._steps:
            close = getattr(getattr(step.run, "test", step.run), "close", None)
            if callable(close):
                close()


class BarrierWork:
    """What a barrier planned, applied to one shard after another."""

    def __init__(self, workspace: Workspace, source: Source, barrier: Barrier, level: int) -> None:
        self._workspace, self._source, self._level = workspace, source, level
        self._barrier, self._value = barrier, workspace.load_barrier(level)

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the barrier's output for a shard, unless it or a later one is there already."""
        if self._workspace.level_of(shard.name) >= self._level:
            return 0
        state = load_input(self._workspace, self._source, shard, self._level)
        barrier, value = self._barrier, self._value
        if isinstance(value, PerShard):
            value = self._workspace.load_barrier(self._level, shard.name)
        steps = [Step("apply", lambda table: barrier.apply(table, value), barrier.reasons)]
        state = _advance(shard, state, barrier.name, steps)
        return _commit(self._workspace, self._level, shard, state)

    def close(self) -> None:
        """Nothing is held open."""


class ExtensionWork:
    """What an extension does for one shard after another; its errors name stage and shard."""

    def __init__(self, extension: Extension, storage: Storage) -> None:
        self._name = extension.name
        with ErrorContext(self._name, "(all)", "opening the stage").explained():
            self._work: ShardWork = extension.open(storage)

    def __call__(self, shard: ShardPlan) -> int:
        """Do a shard and return the number of things that were made."""
        with ErrorContext(self._name, shard.name, "the stage").explained():
            return self._work(shard)

    def close(self) -> None:
        """Release what the stage holds."""
        self._work.close()


def load_input(workspace: Workspace, source: Source, shard: ShardPlan, level: int) -> ShardState:
    """The state of a shard before a level: what the level below saved, or the records as read."""
    if level > 1:
        return workspace.load(level - 1, shard.name)
    with ErrorContext(READ, shard.name, "the source").explained():
        table = source.read(shard)
    return admit(table, shard.name, shard.num_records, reasons_of(source))


def _advance(shard: ShardPlan, state: ShardState, stage: str, steps: Sequence[Step]) -> ShardState:
    state = count_seen(state, stage)
    for step in steps:
        state = apply_step(state, step, stage, shard.name)
    return state


def _commit(workspace: Workspace, level: int, shard: ShardPlan, state: ShardState) -> int:
    workspace.save(level, shard.name, state)
    workspace.discard(level - 1, shard.name)
    return state.table.num_rows


def _constructed(
    step: Transform | Construct | Filter, stage: str, asks: Iterator[Ask]
) -> Transform | Filter:
    """The step ready to run; one that shares something takes the next of `asks`, if there are any."""
    made = construct_of(step)
    if made is None:
        return cast("Transform | Filter", step)
    ask = next(asks, None) if made.shared is not None else None
    with ErrorContext(stage, "(all)", f"constructing '{step_name(step)}'").explained():
        product = made.make(*made.args) if ask is None else made.make(*made.args, ask=ask)
    return replace(step, test=product) if isinstance(step, Filter) else product
