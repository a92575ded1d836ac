"""Many inputs are planned by the workers: the same plan, resumed where it stopped, refused as in the driver."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.build_instruct import main as build_instruct
from jobs.build_laion import main as build_laion
from pipelines.core.inputs import MIN_INPUTS, PlanError, planned
from pipelines.core.pipeline import ShardPlan
from pipelines.core.stage_runner import LocalRunner, Operator
from pipelines.core.storage import Storage
from pipelines.core.workspace import INPUTS
from pipelines.readers.columns import Column
from pipelines.readers.csv import CsvSource
from pipelines.readers.files import FileSource
from pipelines.readers.jsonl import LineSource
from pipelines.readers.tables import TableSource

NUM_FILES = MIN_INPUTS + 8


@dataclass(frozen=True)
class StoppingRunner:
    """Stops after some units of work, and says which ones it was given."""

    num_done: int | None = None
    given: list[str] = field(default_factory=list)

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        self.given.extend(shard.name for shard in shards)
        yield from islice(LocalRunner().run(operators, shards), self.num_done)
        if self.num_done is not None:
            raise KeyboardInterrupt


def follow(
    results: Iterator[tuple[str, int]], label: str, sizes: Mapping[str, int], pending: Sequence[str]
) -> None:
    assert label == "plan: inputs" and set(pending) <= set(sizes)
    for _ in results:
        pass


def write_lines(folder: Path, kind: str) -> str:
    """Files of 0 to 6 records, with lines of white space between."""
    suffix = ".jsonl.gz" if kind == "gz" else ".jsonl"
    for number in range(NUM_FILES):
        rows = [json.dumps({"n": number, "row": row}) for row in range(number % 7)]
        text = ("\n \n".join(rows) or "\n").encode()
        data = gzip.compress(text) if kind == "gz" else text
        (folder / f"{number:03d}{suffix}").write_bytes(data)
    return f"{folder}/*{suffix}"


def write_tables(folder: Path) -> list[str]:
    for number in range(NUM_FILES):
        rows = "".join(f"u{number}-{row}\n" for row in range(number % 7))
        (folder / f"{number:03d}.csv").write_text(f"url\n{rows}")
        table = pa.table({"url": [f"p{number}-{row}" for row in range(number % 5)]})
        pq.write_table(table, folder / f"{number:03d}.parquet")
    return [f"{folder}/*.csv", f"{folder}/*.parquet"]


def test_a_source_that_lacks_a_method_cannot_be_made():
    class Unfinished(LineSource):
        read = FileSource.read

    with pytest.raises(TypeError, match=r"abstract method '?read"):
        Unfinished(["a.jsonl"])


def records(source: FileSource, plan: Sequence[ShardPlan], column: str) -> list[list[Any]]:
    read: Any = source
    return [read.read(shard).select(["key", column]).to_pylist() for shard in plan]


@pytest.mark.parametrize("kind", ["gz", "plain"])
def test_workers_plan_what_the_driver_plans(tmp_path: Path, kind: str) -> None:
    source = LineSource([write_lines(tmp_path, kind)], samples_per_shard=5)
    plan = list(planned(source, "x", Storage(str(tmp_path / "out")), LocalRunner(), follow))
    assert [shard.num_records for shard in plan[:-1]] == [5] * (len(plan) - 1)
    assert records(source, plan, "line") == records(source, source.plan("x"), "line")
    lines = [row["line"] for shard in records(source, plan, "line") for row in shard]
    wanted = [(n, row) for n in range(NUM_FILES) for row in range(n % 7)]
    assert [tuple(json.loads(line).values()) for line in lines] == wanted


def test_tables_too(tmp_path: Path) -> None:
    columns = (Column("url", pa.large_string()),)
    source = TableSource(write_tables(tmp_path), samples_per_shard=6, columns=columns)
    plan = list(planned(source, "x", Storage(str(tmp_path / "out")), LocalRunner(), follow))
    assert records(source, plan, "url") == records(source, source.plan("x"), "url")
    urls = [row["url"] for shard in records(source, plan, "url") for row in shard]
    assert urls == [
        *(f"u{n}-{row}" for n in range(NUM_FILES) for row in range(n % 7)),
        *(f"p{n}-{row}" for n in range(NUM_FILES) for row in range(n % 5)),
    ]
    trial = replace(source, limit=9)  # is planned by the driver
    assert trial.inputs() == ()
    found = [row["url"] for shard in records(trial, trial.plan("x"), "url") for row in shard]
    assert found == urls[:9]


def test_planning_resumes_where_it_was_stopped(tmp_path: Path) -> None:
    source = LineSource([write_lines(tmp_path, "gz")], samples_per_shard=5)
    storage, stopped, again = Storage(str(tmp_path / "out")), StoppingRunner(30), StoppingRunner()
    with pytest.raises(KeyboardInterrupt):
        planned(source, "x", storage, stopped, follow)
    plan = planned(source, "x", storage, again, follow)
    assert again.given == stopped.given[30:] and len(stopped.given) == NUM_FILES
    assert list(plan) == list(json_values(source.plan("x")))
    (tmp_path / "000.jsonl.gz").write_bytes(gzip.compress(b"{}\n{}\n"))
    changed = StoppingRunner()
    planned(source, "x", storage, changed, follow)
    assert len(changed.given) == NUM_FILES


def json_values(plan: Sequence[ShardPlan]) -> Iterator[ShardPlan]:
    for shard in plan:
        yield replace(shard, parts=tuple(json.loads(json.dumps(shard.parts))))


def test_what_no_worker_can_plan_is_refused_and_looked_at_again(tmp_path: Path) -> None:
    write_tables(tmp_path)
    source = CsvSource([f"{tmp_path}/*.csv"], columns=(Column("url", pa.large_string()),))
    storage, bad = Storage(str(tmp_path / "out")), tmp_path / "007.csv"
    bad.write_text("address\nx\n")
    with pytest.raises(PlanError, match=r"007\.csv.*url"):
        planned(source, "x", storage, LocalRunner(), follow)
    bad.write_text("url\nx\n")
    assert sum(s.num_records or 0 for s in planned(source, "x", storage, LocalRunner(), follow))


def test_a_build_of_many_inputs_leaves_nothing_of_its_planning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(NUM_FILES):
        talk = {"instruction": f"Say {number}.", "output": f"It is {number}."}
        (tmp_path / f"{number:03d}.jsonl").write_text(json.dumps(talk))
    options = ["--runner=local", f"--dialogues={tmp_path}/*.jsonl", f"--out={tmp_path / 'out'}"]
    assert build_instruct(options) == 0
    assert "plan: inputs" in capsys.readouterr().err
    assert not (tmp_path / "out" / INPUTS).exists()
    for number in range(NUM_FILES):
        pq.write_table(pa.table({"a": [1]}), tmp_path / f"{number:03d}.parquet")
    wrong = ["--runner=local", f"--metadata={tmp_path}/*.parquet", f"--out={tmp_path / 'laion'}"]
    assert build_laion(wrong) == 2
    assert "no column 'url'" in capsys.readouterr().err
