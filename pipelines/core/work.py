"""The work of the engine on one shard: apply the steps of a stage, apply a barrier, publish."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import pyarrow as pa

from pipelines.core.counts import READ
from pipelines.core.errors import StepError
from pipelines.core.filter import Filter
from pipelines.core.ledger import in_order, kept_rows
from pipelines.core.row_rules import Place
from pipelines.core.runner import Operator
from pipelines.core.stage import (
    Barrier,
    Construct,
    Pipeline,
    Resources,
    ShardPlan,
    Sink,
    Source,
    Stage,
    Transform,
)
from pipelines.core.steps import ShardState, admit, apply_step, begin, step_name
from pipelines.core.tables import write_parquet
from pipelines.core.workspace import PUBLISH, Workspace
from schemas.manifest import ShardEntry
from schemas.sample import canonical_json
from schemas.shard import FEATURES, LEDGERS
from schemas.tables import LEDGER

ABOUT_KEY = b"emu.shard"
"""Metadata of a published ledger: the shard's entry in the manifest and its counts by stage."""


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
        self._steps = [(step_name(s), _made(s, stage.name)) for s in stage.steps]

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the stage's output for a shard, unless it or a later one is there already."""
        if self._workspace.level_of(shard.name) >= self._level:
            return 0
        state = previous(self._workspace, self._source, shard, self._level)
        return _advance(self._workspace, self._level, shard, state, self._stage.name, self._steps)

    def close(self) -> None:
        """Close the transforms that can be closed."""
        for _, step in self._steps:
            close = getattr(step, "close", None)
            if callable(close):
                close()


class BarrierWork:
    """What a barrier planned, applied to one shard after another."""

    def __init__(self, workspace: Workspace, source: Source, barrier: Barrier, level: int) -> None:
        self._workspace, self._source, self._level = workspace, source, level
        self._name = barrier.name
        value = workspace.load_barrier(level)
        self._steps = [("apply", lambda table: barrier.apply(table, value))]

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


def previous(workspace: Workspace, source: Source, shard: ShardPlan, level: int) -> ShardState:
    """The state of a shard before a level: what the level below saved, or the records just read."""
    if level > 1:
        return workspace.load(level - 1, shard.name)
    with Place(READ, shard.name, "the source").explained():
        table = source.read(shard)
    return admit(table, shard.name, shard.num_records)


def _advance(
    workspace: Workspace,
    level: int,
    shard: ShardPlan,
    state: ShardState,
    stage: str,
    steps: Sequence[tuple[str, Transform | Filter]],
) -> int:
    state = begin(state, stage)
    for name, step in steps:
        state = apply_step(state, step, name, stage, shard.name)
    workspace.save(level, shard.name, state)
    workspace.discard(level - 1, shard.name)
    return state.table.num_rows


def _made(step: Transform | Construct | Filter, stage: str) -> Transform | Filter:
    if not isinstance(step, Construct):
        return step
    with Place(stage, "(all)", f"making '{step.name}'").explained():
        return step.make(*step.args)
