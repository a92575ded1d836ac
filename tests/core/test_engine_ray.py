"""The Ray runner gives the bytes of the local one, also when workers or whole jobs are killed."""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from engine_jobs import Job, kill_group
from numbers_pipeline import NumberSource, contents, numbers_pipeline
from ray import cloudpickle
from test_engine_barrier import with_dedup

from pipelines.core.pipeline import Construct, EngineError, Pipeline, Resources, Stage, StepError
from pipelines.core.run import run
from pipelines.core.run_ray import RayRunner


@pytest.fixture(scope="module", autouse=True)
def _code_travels_to_workers() -> Iterator[None]:
    """Workers cannot import the modules of tests; a real pipeline lies in a package that they have."""
    modules = [sys.modules[n] for n in (__name__, "numbers_pipeline", "test_engine_barrier")]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def build(pipeline: Pipeline, out: Path) -> dict[str, str]:
    run(pipeline, str(out), RayRunner(), progress=False)
    return contents(out)


def assert_all_cpus_become_free(within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end, ray.available_resources()
        time.sleep(0.1)


def build_locally(pipeline: Pipeline, out: Path) -> dict[str, str]:
    run(pipeline, str(out), progress=False)
    return contents(out)


@pytest.mark.usefixtures("local_ray")
def test_both_runners_give_the_same_bytes_with_a_barrier(tmp_path: Path) -> None:
    barrier, steps = tmp_path / "barrier", tmp_path / "steps"
    barrier.mkdir()
    steps.mkdir()
    expected = build_locally(with_dedup(barrier), tmp_path / "local")
    assert build(with_dedup(barrier, steps=steps), tmp_path / "ray") == expected
    noted = [p.name.split(".") for p in steps.iterdir()]
    counts = Counter(what for what, *_ in noted)
    assert {n: counts[n] for n in ("parse", "fetch", "write")} == dict.fromkeys(
        ("parse", "fetch", "write"), 5
    )
    assert str(os.getpid()) not in {pid for _, _, pid, _ in noted}


@pytest.mark.usefixtures("local_ray")
def test_an_error_of_a_step_names_stage_and_shard(tmp_path: Path) -> None:
    def fail(table: pa.Table) -> pa.Table:
        if 42 in table["number"].to_pylist():
            raise ValueError("no forty-two")
        return table

    pipeline = numbers_pipeline()
    parse, fetch = pipeline.stages
    one = Resources(concurrency=1)  # a worker takes seconds to start
    stages = (Stage("check", (fail,), one), replace(fetch, resources=one))
    broken = replace(pipeline, stages=(replace(parse, resources=one), *stages))
    named = r"stage 'check', shard 'numbers-000004': .*no forty-two"
    with pytest.raises(StepError, match=named) as raised:
        run(broken, str(tmp_path), RayRunner(), progress=False)
    assert_all_cpus_become_free()  # although the error, which is kept here, refers to the worker
    assert raised.value is not None
    assert not (tmp_path / "manifest.json").exists()


class Unmakeable:
    def __init__(self) -> None:
        raise FileNotFoundError("no weights here")


@pytest.mark.usefixtures("local_ray")
def test_a_transform_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    stage = Stage("features", (Construct(Unmakeable),))  # type: ignore[arg-type]
    pipeline = replace(numbers_pipeline(), stages=(stage,))
    with pytest.raises(
        StepError, match=r"stage 'features'.*constructing 'Unmakeable'.*no weights here"
    ):
        run(pipeline, str(tmp_path), RayRunner(), progress=False)


@dataclass(frozen=True)
class Deadly:
    """Kills its worker at one number, each time."""

    deaths: Path

    def __call__(self, table: pa.Table) -> pa.Table:
        if 42 in table["number"].to_pylist():
            (self.deaths / f"{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return table


@dataclass(frozen=True)
class MadeDeadly:
    """`Deadly`, kept on an actor."""

    deaths: Path

    def __call__(self) -> Deadly:
        return Deadly(self.deaths)


@pytest.mark.slow
@pytest.mark.parametrize("on_actor", [False, True], ids=["task", "actor"])
@pytest.mark.usefixtures("local_ray")
def test_a_shard_that_kills_its_worker_each_time_ends_the_run(
    tmp_path: Path, on_actor: bool
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    step = Construct(MadeDeadly(deaths)) if on_actor else Deadly(deaths)  # type: ignore[arg-type]
    pipeline = numbers_pipeline()
    parse, fetch = pipeline.stages
    broken = replace(pipeline, stages=(parse, Stage("check", (step,)), fetch))
    with pytest.raises(
        EngineError, match=r"shards not done.*numbers-000004.*failed more than 2 times"
    ):
        run(broken, str(tmp_path / "out"), RayRunner(max_worker_failures=2), progress=False)
    assert len(list(deaths.iterdir())) == 3
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray")
def test_killed_workers_change_nothing(tmp_path: Path) -> None:
    source, calls = NumberSource(60), tmp_path / "calls"
    calls.mkdir()
    expected = build_locally(numbers_pipeline(source), tmp_path / "local")
    killed: list[str] = []
    is_over = threading.Event()

    def kill_some() -> None:
        chance, seen = random.Random(4), set()
        while not is_over.is_set() and len(killed) < 3:
            for call in sorted(calls.glob("*")):
                what, shard, pid, _ = call.name.split(".")
                if (what, shard) in seen or what not in ("parse", "fetch"):
                    continue
                seen.add((what, shard))
                if chance.random() < 0.4 and len(killed) < 3 and int(pid) != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                        killed.append(f"{what} {shard}")
            time.sleep(0.01)

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        pipeline = numbers_pipeline(source, str(calls), (0.01,))
        assert build(pipeline, tmp_path / "ray") == expected
    finally:
        is_over.set()
        killer.join()
    assert len(killed) == 3, killed


def kill_ray_jobs(job: Job, tmp_path: Path, num_kills: int, seed: int) -> None:
    """Also: the job's Ray has one CPU, less than its stages ask for together, and does not stand still."""
    chance, out, options = random.Random(seed), tmp_path / "out", ("--ray", "--sleep-s", "0.1")
    calls = tmp_path / "calls"
    calls.mkdir()
    for _ in range(num_kills):
        process = job.start(out, *options, "--calls", str(calls))
        # Half of the kills fall into the work, the others into its beginning or end.
        wanted = len(list(calls.iterdir())) + chance.randint(0, 8)
        deadline = time.monotonic() + 120
        while len(list(calls.iterdir())) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.5))
        kill_group(process)
    job.to_the_end(out, *options)
    job.to_the_end(tmp_path / "local")
    assert contents(out) == contents(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_killed_jobs_change_nothing(job: Job, tmp_path: Path) -> None:
    kill_ray_jobs(job, tmp_path, 20, seed=6)
