"""Publishing from memory, where the workers of the last stage do it, and from the working folder where not."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest
from numbers_pipeline import NumberSource, TarSink, contents, numbers_pipeline

from pipelines.core.pipeline import Pipeline, Resources
from pipelines.core.publishing import operators
from pipelines.core.run import run
from pipelines.core.stage_runner import LocalRunner
from pipelines.core.storage import Storage
from pipelines.core.workspace import WORK, Workspace
from schemas.manifest import ShardEntry

LAST = f"{WORK}/02-fetch"


@dataclass(frozen=True)
class WatchingSink(TarSink):
    """Notes what lies in the working folder of the last stage when a shard is published."""

    seen: list[list[str]] = field(default_factory=list)

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        self.seen.append(storage.list(LAST))
        return super().write(shard, table, storage)


def watched(*needs: Resources) -> tuple[Pipeline, WatchingSink]:
    sink, pipeline = WatchingSink(), numbers_pipeline(NumberSource(30))
    *before, last = pipeline.stages
    stages = (*before, *(replace(last, resources=each) for each in needs or (last.resources,)))
    return replace(pipeline, stages=stages, sink=sink), sink


@pytest.mark.parametrize("needs", [Resources(num_gpus=0.5), Resources(concurrency=1)])
def test_a_shard_is_not_saved_before_the_same_worker_publishes_it(
    tmp_path: Path, needs: Resources
) -> None:
    here, there = watched(), watched(needs)
    for name, (pipeline, _) in (("here", here), ("there", there)):
        run(pipeline, str(tmp_path / name), progress=False)
    assert here[1].seen and not any(here[1].seen)
    assert there[1].seen and all(there[1].seen)
    published = ("shards", "index", "ledger")
    found = [contents(tmp_path / name) for name in ("here", "there")]
    one, other = ({p: d for p, d in f.items() if p.startswith(published)} for f in found)
    assert one == other and len(one) == 3 * len(here[1].seen)


def test_what_an_earlier_run_saved_after_the_last_stage_is_published_from_there(
    tmp_path: Path,
) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    pipeline = numbers_pipeline(NumberSource(30), str(calls))
    shards = pipeline.source.plan(pipeline.dataset)
    workspace = Workspace(Storage(str(tmp_path / "out")), ("parse", "fetch"))
    for first, last in ((1, 2), (1, 3)):
        chosen = operators(pipeline, workspace, first, last)
        assert len(list(LocalRunner().run(chosen, shards))) == len(shards)
        assert set(workspace.survey().values()) == {last}
    noted = [path.name.split(".")[0] for path in calls.iterdir()]
    assert [noted.count(what) for what in ("fetch", "write")] == [len(shards)] * 2
    assert not [name for name in workspace.storage.list(LAST) if name.endswith(".arrow")]
