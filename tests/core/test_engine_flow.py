"""Shards in flight are bounded, limits per host hold over all workers, and a full cluster is no silent deadlock."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import simplejpeg
from numbers_pipeline import NumberSource, contents, numbers_pipeline
from ray import cloudpickle

from pipelines.core.pipeline import Pipeline, Resources
from pipelines.core.run import run
from pipelines.core.run_ray import RayRunner
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.download.config import FetchConfig
from tests.servers.web import Call, WebServer


@pytest.fixture(scope="module", autouse=True)
def _code_travels_to_workers() -> Iterator[None]:
    modules = [sys.modules[n] for n in (__name__, "numbers_pipeline")]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def numbers(source: NumberSource, num_cpus: float, calls: Path | None = None) -> Pipeline:
    made = numbers_pipeline(source, None if calls is None else str(calls))
    stages = tuple(replace(s, resources=Resources(num_cpus=num_cpus)) for s in made.stages)
    return replace(made, stages=stages)


@ray.remote
class Tenant:
    """Somebody else's actor on a shared cluster."""

    def ready(self) -> None:
        """Returns when the actor runs."""


def tenant(num_cpus: float) -> ray.actor.ActorHandle:
    actor = Tenant.options(num_cpus=num_cpus).remote()
    ray.get(actor.ready.remote(), timeout=120)
    return actor


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("num_workers", [2, 8])
def test_shards_in_flight_are_as_many_as_workers(tmp_path: Path, num_workers: int) -> None:
    calls, source = tmp_path / "calls", NumberSource(300)
    calls.mkdir()
    num_cpus = 8 / num_workers
    run(numbers(source, num_cpus, calls), str(tmp_path / "out"), RayRunner(), progress=False)
    events = [p.name.split(".") for p in calls.iterdir()]
    timed = sorted((int(when), what) for what, _, _, when in events)
    in_flight = most = 0
    for _, what in timed:
        in_flight += {"parse": 1, "write": -1}.get(what, 0)
        most = max(most, in_flight)
    assert sum(what == "write" for _, what in timed) == 30
    assert most <= num_workers
    assert not (tmp_path / "out" / ".work").exists()


@pytest.mark.usefixtures("local_ray")
def test_a_build_waits_for_a_full_cluster_and_says_so_then_uses_the_one_cpu_that_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [tenant(7.0), tenant(1.0)]
    said = threading.Event()

    def free_one() -> None:
        while not any("waiting for a worker" in r.getMessage() for r in caplog.records):
            time.sleep(0.05)
        said.set()
        ray.kill(others[1])

    watcher = threading.Thread(target=free_one, daemon=True)
    try:
        with caplog.at_level(logging.WARNING):
            watcher.start()
            runner = RayRunner(notice_s=0.5)
            source = NumberSource(30)
            run(numbers(source, 1.0), str(tmp_path / "ray"), runner, progress=False)
    finally:
        for actor in others:
            ray.kill(actor)
    assert said.is_set()
    notice = next(r.getMessage() for r in caplog.records if "waiting" in r.getMessage())
    assert "needs 1 CPU" in notice and "0 of 8 CPUs" in notice
    run(numbers(source, 1.0), str(tmp_path / "local"), progress=False)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_limits_per_host_hold_over_all_workers(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = simplejpeg.encode_jpeg(noise)

    async def slow(call: Call) -> None:
        import asyncio

        await asyncio.sleep(0.02)
        await call.respond(200, image)

    with WebServer({"/a.jpg": slow}) as server:
        lines = [
            {
                "url": "http://s.example/",
                "text_list": ["A sentence."],
                "image_info": [{"raw_url": server.url(f"/a.jpg?{n}"), "matched_text_index": 0}],
                "similarity_matrix": [[0.5]],
            }
            for n in range(120)
        ]
        documents = tmp_path / "docs.jsonl"
        documents.write_text("".join(json.dumps(line) + "\n" for line in lines))
        fetch = FetchConfig(allow_host=(server.allow(),), per_host=3)
        source = mmc4.READER([str(documents)], samples_per_shard=20)
        needs = Resources(num_cpus=2.0)
        pipeline = mmc4.pipeline(Build(source, fetch, fetch_resources=needs), mmc4.Rules())
        manifest = run(pipeline, str(tmp_path / "ray"), RayRunner(), progress=False)
        assert manifest.links.kept == 120
        assert server.most_at_once <= 3
        run(pipeline, str(tmp_path / "local"), progress=False)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
