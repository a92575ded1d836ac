"""A barrier sees the whole dataset once and is applied shard by shard, also after a kill."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from numbers_pipeline import NumberSource, contents, numbers_pipeline

from pipelines.core.pipeline import Barrier, Pipeline, Reason, Stage, StepError
from pipelines.core.run import run


def with_dedup(calls: Path, is_broken: bool = False, steps: Path | None = None) -> Pipeline:
    """Of all numbers with the same last digit, only the smallest stays."""

    def plan(tables: Iterable[pa.Table]) -> dict[int, int]:
        first: dict[int, int] = {}
        for number, table in enumerate(tables):
            (calls / f"plan.{number}.{len(list(calls.iterdir()))}").touch()
            for value in table["number"].to_pylist():
                first.setdefault(value % 10, value)
        return first

    def apply(table: pa.Table, first: dict[int, int]) -> pa.Table:
        (calls / f"apply.{len(list(calls.iterdir()))}").touch()
        values = table["number"].to_pylist()
        if is_broken and 27 in values:
            raise RuntimeError("no twenty-seven")
        reasons = [None if first[v % 10] == v else "duplicate" for v in values]
        position = table.schema.get_field_index("drop_reason")
        return table.set_column(position, "drop_reason", pa.array(reasons, pa.string()))

    pipeline = numbers_pipeline(NumberSource(50), steps and str(steps))
    reasons = {"duplicate": Reason("A smaller number has the same last digit.")}
    barrier = Barrier("dedup", plan, apply, reasons=reasons)
    return replace(pipeline, stages=(*pipeline.stages, barrier, Stage("last", ())))


def num_calls(folder: Path) -> Counter[str]:
    return Counter(p.name.partition(".")[0] for p in folder.iterdir())


def test_a_barrier_drops_over_the_whole_dataset(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    manifest = run(with_dedup(calls), str(tmp_path / "out"), progress=False)
    assert num_calls(calls) == {"plan": 5, "apply": 5}
    # 4 and 8 have no images in the first ten, 3 fails always; the others stand in the first shard.
    assert manifest.records.dropped["duplicate"] == manifest.stages["dedup"]["dropped"]["duplicate"]
    assert manifest.records.kept == len({n % 10 for n in survivors()})


def survivors() -> list[int]:
    """Numbers that arrive at the barrier: readable, with a link that is not banned and answers."""
    return [
        n
        for n in range(50)
        if n % 13 != 12 and n % 5 != 3 and any((n + s) % 11 for s in range(n % 4))
    ]


def test_a_restart_applies_the_plan_that_was_made(tmp_path: Path) -> None:
    calls, undisturbed = tmp_path / "calls", tmp_path / "undisturbed"
    calls.mkdir()
    undisturbed.mkdir()
    with pytest.raises(StepError, match=r"stage 'dedup', shard 'numbers-000002'.*no twenty-seven"):
        run(with_dedup(calls, is_broken=True), str(tmp_path / "out"), progress=False)
    run(with_dedup(calls), str(tmp_path / "out"), progress=False)
    assert num_calls(calls) == {"plan": 5, "apply": 6}
    run(with_dedup(undisturbed), str(tmp_path / "expected"), progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
