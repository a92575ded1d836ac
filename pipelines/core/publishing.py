"""The operators of a pipeline, and its last one: publishing, from the working folder or from memory.

A shard that one worker takes through the last stage and publishes is not written to the working folder between them:
its images would be written, and read, once more. Who is killed between them does the last stage of one shard again,
as in the middle of that stage.
"""

from functools import partial

import pyarrow as pa

from pipelines.core.contracts import ABOUT_KEY, ErrorContext, in_order, kept_rows
from pipelines.core.pipeline import (
    Ask,
    Barrier,
    Pipeline,
    Resources,
    ShardPlan,
    Sink,
    Source,
    Stage,
    StepError,
    construct_of,
)
from pipelines.core.stage_runner import BarrierWork, Operator, StageWork, load_input
from pipelines.core.storage import write_parquet
from pipelines.core.workspace import PUBLISH, ShardState, Workspace
from schemas.manifest import ShardEntry
from schemas.sample import canonical_json
from schemas.shard import FEATURES, LEDGERS, PARQUET
from schemas.tables import LEDGER


def operators(pipeline: Pipeline, workspace: Workspace, first: int, last: int) -> list[Operator]:
    """One operator for each of the levels `first` to `last` of the workspace: stages and barriers, then publishing.

    The last stage and publishing are one where the same workers do both: the shard is then published from memory.
    """
    found = [
        _operator(stage, level, pipeline.source, workspace)
        for level, stage in enumerate(pipeline.stages, 1)
    ]
    publish = partial(SinkWork, workspace, pipeline.source, pipeline.sink)
    before = found[-1].resources if found else Resources()
    # On the workers of the stage before it, unless these hold what it does not need.
    needs = Resources() if before.num_gpus or before.concurrency else before
    chosen = [*found, Operator(PUBLISH, needs, publish)][first - 1 : last]
    stage = pipeline.stages[-1] if pipeline.stages else None
    if len(chosen) < 2 or last < workspace.last_level:
        return chosen
    if not isinstance(stage, Stage) or needs != before:
        return chosen
    joined = partial(LastStageWork, workspace, pipeline.source, pipeline.sink, stage)
    name = f"{stage.name} > {PUBLISH}"
    return [*chosen[:-2], Operator(name, needs, joined, chosen[-2].shared)]


def _operator(stage: Stage | Barrier, level: int, source: Source, workspace: Workspace) -> Operator:
    if isinstance(stage, Barrier):
        open_barrier = partial(BarrierWork, workspace, source, stage, level)
        return Operator(stage.name, stage.resources, open_barrier)
    made = [construct_of(step) for step in stage.steps]
    open_stage = partial(StageWork, workspace, source, stage, level)
    shared = tuple(m.shared for m in made if m is not None and m.shared is not None)
    return Operator(stage.name, stage.resources, open_stage, shared)


class SinkWork:
    """Tar, index and ledger of one shard after another."""

    def __init__(self, workspace: Workspace, source: Source, sink: Sink) -> None:
        self._workspace, self._source, self._sink = workspace, source, sink

    def __call__(self, shard: ShardPlan) -> int:
        """Publish a shard, unless that is done already; the mark that it is done is written last."""
        workspace, level, name = self._workspace, self._workspace.last_level, shard.name
        if workspace.level_of(name) >= level:
            return 0
        num_records = self.publish(name, load_input(workspace, self._source, shard, level))
        workspace.discard(level - 1, name)
        return num_records

    def publish(self, name: str, state: ShardState) -> int:
        """Publish the state of a shard after its last stage."""
        workspace = self._workspace
        with ErrorContext(PUBLISH, name, "the sink").explained():
            entry = self._sink.write(name, state.table, workspace.storage)
        if not isinstance(entry, ShardEntry) or entry.name != name:
            raise StepError(PUBLISH, name, f"the sink returned {entry!r}, not the shard's entry")
        self._write_ledger(state, entry)
        # They may be of samples that the shard no longer holds.
        workspace.storage.delete(f"{FEATURES}/{name}.arrow")
        workspace.storage.delete(f"{PARQUET}/{name}.parquet")
        workspace.mark_published(name)
        return state.table.num_rows

    def _write_ledger(self, state: ShardState, entry: ShardEntry) -> None:
        rows = in_order(pa.concat_tables([state.ledger, kept_rows(state.table, PUBLISH)]))
        about = canonical_json({"entry": entry.as_dict(), "stages": state.counts}).encode()
        path = f"{LEDGERS}/{entry.name}.parquet"
        write_parquet(self._workspace.storage, path, rows, LEDGER, {ABOUT_KEY: about})

    def close(self) -> None:
        """Nothing is held open."""


class LastStageWork:
    """The last stage on one shard after another, each published from memory."""

    def __init__(
        self, workspace: Workspace, source: Source, sink: Sink, stage: Stage, *asks: Ask
    ) -> None:
        self._workspace, self._level = workspace, workspace.last_level - 1
        self._stage = StageWork(workspace, source, stage, self._level, *asks)
        self._sink = SinkWork(workspace, source, sink)

    def __call__(self, shard: ShardPlan) -> int:
        """Publish a shard, unless that is done already."""
        if self._workspace.level_of(shard.name) >= self._level:
            return self._sink(shard)
        num_records = self._sink.publish(shard.name, self._stage.state_of(shard))
        self._workspace.discard(self._level - 1, shard.name)
        return num_records

    def close(self) -> None:
        """Release what the stage holds."""
        self._stage.close()
