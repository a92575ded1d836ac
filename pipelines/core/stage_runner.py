"""Operators and runners: the work of each stage on one shard, and who does it where.

One step on one shard: call it, hold it to the rules of tables, move what it dropped into the ledger.

The work of the engine on one shard: apply the steps of a stage, apply a barrier, publish.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.contracts import (
    FIXED,
    Place,
    all_declared,
    all_different,
    all_match,
    dead_before,
    same_rows,
    with_reserved,
)
from pipelines.core.errors import StepError
from pipelines.core.ledger import (
    ABOUT_KEY,
    READ,
    Links,
    counted,
    in_order,
    kept_rows,
    link_rows,
    merged,
    record_rows,
    tally,
)
from pipelines.core.pipeline import (
    RECORD_DROPPED,
    SHARD_KEY,
    Barrier,
    Construct,
    Extension,
    Filter,
    Pipeline,
    Reasons,
    Resources,
    ShardPlan,
    Sink,
    Source,
    Stage,
    Transform,
    reasons_of,
)
from pipelines.core.storage import Storage, write_parquet
from pipelines.core.workspace import PUBLISH, ShardState, Workspace
from schemas.manifest import ShardEntry
from schemas.sample import KEY_PATTERN, canonical_json
from schemas.shard import FEATURES, LEDGERS
from schemas.tables import DROPPED, LEDGER, REASON_PATTERN


class ShardWork(Protocol):
    """One stage, ready to work on one shard after another."""

    def __call__(self, shard: ShardPlan) -> int:
        """Do what is missing for the shard, commit it, and return how many records are left."""
        ...

    def close(self) -> None:
        """Give back what the steps hold (sessions, models)."""
        ...


@dataclass(frozen=True)
class Operator:
    """A stage as a runner sees it: name, needs, and how to make its work on a worker."""

    name: str
    resources: Resources
    open: Callable[[], ShardWork]
    is_stateful: bool = False
    """True if making it is costly (it constructs its transforms), so that a worker keeps it."""


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


def admit(table: pa.Table, shard: str, num_records: int, declared: Reasons) -> ShardState:
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
    return _settled(ShardState(table), None, table, READ, place, declared)


def begin(state: ShardState, stage: str) -> ShardState:
    """The state with all that it holds counted as seen by a stage."""
    alive = int((~Links(state.table).is_dead).sum())
    seen = counted(stage, (state.table.num_rows, {}), (alive, {}))
    return replace(state, counts=merged(state.counts, seen))


@dataclass(frozen=True)
class Step:
    """A step that is ready to run, with the reasons that it may set."""

    name: str
    run: Transform | Filter
    reasons: Reasons


def apply_step(state: ShardState, step: Step, stage: str, shard: str) -> ShardState:
    """The state after a step; raises `StepError` naming it if it raises or breaks a rule."""
    place = Place(stage, shard, f"step '{step.name}'")
    before = state.table.replace_schema_metadata({SHARD_KEY: shard.encode()})
    with place.explained():
        run = step.run
        after = _filtered(before, run) if isinstance(run, Filter) else run(before)
    if not isinstance(after, pa.Table):
        raise place.error(f"returned {type(after).__name__}, not a table")
    same_rows(before, after, place)
    label = f"{stage}/{run.name}" if isinstance(run, Filter) else stage
    return _settled(state, before, with_reserved(after, place), label, place, step.reasons)


def step_name(step: Transform | Construct | Filter) -> str:
    """The name of a step for errors: of the filter, of what is constructed, of the function."""
    if isinstance(step, Filter | Construct):
        return step.name
    return getattr(step, "__name__", type(step).__name__)


def _filtered(table: pa.Table, step: Filter) -> pa.Table:
    reasons = step.test(table)
    if len(reasons) != table.num_rows:
        raise ValueError(f"{len(reasons)} reasons for {table.num_rows} rows")
    position = table.schema.get_field_index("drop_reason")
    return table.set_column(position, "drop_reason", reasons.cast(pa.string()))


def _settled(
    state: ShardState,
    before: pa.Table | None,
    after: pa.Table,
    label: str,
    place: Place,
    declared: Reasons,
) -> ShardState:
    """Take dropped records out; write them, their living links and newly dead links down."""
    reasons, links = after.column("drop_reason"), Links(after)
    all_match(reasons, REASON_PATTERN, after.column("key"), place, "drop_reason")
    all_match(links.reason, REASON_PATTERN, links.url, place, "reason of a link")
    was_dead = dead_before(before, after, place)
    dies = links.is_dead & ~was_dead
    all_declared(reasons, after.column("key"), declared, place, "drop_reason")
    new = pa.array(dies)
    all_declared(
        links.reason.filter(new), links.url.filter(new), declared, place, "reason of a link"
    )
    is_dropped = pc.is_valid(reasons).to_numpy(zero_copy_only=False)
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


def operators(pipeline: Pipeline, workspace: Workspace) -> list[Operator]:
    """One operator for each level of the workspace: the stages and barriers, then publishing."""
    found = [
        _operator(stage, level, pipeline.source, workspace)
        for level, stage in enumerate(pipeline.stages, 1)
    ]
    publish = partial(SinkWork, workspace, pipeline.source, pipeline.sink)
    return [*found, Operator(PUBLISH, Resources(), publish)]


def _operator(stage: Stage | Barrier, level: int, source: Source, workspace: Workspace) -> Operator:
    if isinstance(stage, Barrier):
        open_barrier = partial(BarrierWork, workspace, source, stage, level)
        return Operator(stage.name, stage.resources, open_barrier, is_stateful=True)
    is_stateful = any(isinstance(step, Construct) for step in stage.steps)
    open_stage = partial(StageWork, workspace, source, stage, level)
    return Operator(stage.name, stage.resources, open_stage, is_stateful)


class StageWork:
    """A stage on one shard after another; its transforms are made once."""

    def __init__(self, workspace: Workspace, source: Source, stage: Stage, level: int) -> None:
        self._workspace, self._source, self._stage, self._level = workspace, source, stage, level
        self._steps = [Step(step_name(s), _made(s, stage.name), reasons_of(s)) for s in stage.steps]

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the stage's output for a shard, unless it or a later one is there already."""
        if self._workspace.level_of(shard.name) >= self._level:
            return 0
        state = previous(self._workspace, self._source, shard, self._level)
        return _advance(self._workspace, self._level, shard, state, self._stage.name, self._steps)

    def close(self) -> None:
        """Close the transforms that can be closed."""
        for step in self._steps:
            close = getattr(step.run, "close", None)
            if callable(close):
                close()


class BarrierWork:
    """What a barrier planned, applied to one shard after another."""

    def __init__(self, workspace: Workspace, source: Source, barrier: Barrier, level: int) -> None:
        self._workspace, self._source, self._level = workspace, source, level
        self._name = barrier.name
        value = workspace.load_barrier(level)
        apply = partial(_applied, barrier, value)
        self._steps = [Step("apply", apply, barrier.reasons)]

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the barrier's output for a shard, unless it or a later one is there already."""
        if self._workspace.level_of(shard.name) >= self._level:
            return 0
        state = previous(self._workspace, self._source, shard, self._level)
        return _advance(self._workspace, self._level, shard, state, self._name, self._steps)

    def close(self) -> None:
        """Nothing is held open."""


class SinkWork:
    """Tar, index and ledger of one shard after another."""

    def __init__(self, workspace: Workspace, source: Source, sink: Sink) -> None:
        self._workspace, self._source, self._sink = workspace, source, sink

    def __call__(self, shard: ShardPlan) -> int:
        """Publish a shard, unless that is done already; the mark that it is done comes last."""
        workspace, level, name = self._workspace, self._workspace.last_level, shard.name
        if workspace.level_of(name) >= level:
            return 0
        state = previous(workspace, self._source, shard, level)
        with Place(PUBLISH, name, "the sink").explained():
            entry = self._sink.write(name, state.table, workspace.storage)
        if not isinstance(entry, ShardEntry) or entry.name != name:
            raise StepError(PUBLISH, name, f"the sink returned {entry!r}, not the shard's entry")
        self._write_ledger(state, entry)
        # Features of images that the shard no longer holds must not outlive them.
        workspace.storage.delete(f"{FEATURES}/{name}.arrow")
        workspace.mark_published(name)
        workspace.discard(level - 1, name)
        return state.table.num_rows

    def _write_ledger(self, state: ShardState, entry: ShardEntry) -> None:
        rows = in_order(pa.concat_tables([state.ledger, kept_rows(state.table, PUBLISH)]))
        about = canonical_json({"entry": asdict(entry), "stages": state.counts}).encode()
        path = f"{LEDGERS}/{entry.name}.parquet"
        write_parquet(self._workspace.storage, path, rows, LEDGER, {ABOUT_KEY: about})

    def close(self) -> None:
        """Nothing is held open."""


class ExtensionWork:
    """What an extension does for one shard after another; its errors name stage and shard."""

    def __init__(self, extension: Extension, storage: Storage) -> None:
        self._name = extension.name
        with Place(self._name, "(all)", "opening the stage").explained():
            self._work: ShardWork = extension.open(storage)

    def __call__(self, shard: ShardPlan) -> int:
        """Do a shard and return the number of things that were made."""
        with Place(self._name, shard.name, "the stage").explained():
            return self._work(shard)

    def close(self) -> None:
        """Release what the stage holds."""
        self._work.close()


def previous(workspace: Workspace, source: Source, shard: ShardPlan, level: int) -> ShardState:
    """The state of a shard before a level: what the level below saved, or the records just read."""
    if level > 1:
        return workspace.load(level - 1, shard.name)
    with Place(READ, shard.name, "the source").explained():
        table = source.read(shard)
    return admit(table, shard.name, shard.num_records, reasons_of(source))


def _advance(
    workspace: Workspace,
    level: int,
    shard: ShardPlan,
    state: ShardState,
    stage: str,
    steps: Sequence[Step],
) -> int:
    state = begin(state, stage)
    for step in steps:
        state = apply_step(state, step, stage, shard.name)
    workspace.save(level, shard.name, state)
    workspace.discard(level - 1, shard.name)
    return state.table.num_rows


def _applied(barrier: Barrier, value: Any, table: pa.Table) -> pa.Table:
    return barrier.apply(table, value)


def _made(step: Transform | Construct | Filter, stage: str) -> Transform | Filter:
    if not isinstance(step, Construct):
        return step
    with Place(stage, "(all)", f"making '{step.name}'").explained():
        return step.make(*step.args)
