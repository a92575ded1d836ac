"""On Ray Serve: a replica that is killed, and a server that is stopped."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from emu.serve.app import build
from tests.serve.conftest import CHAT, Caller, error_of, free_port

pytestmark = pytest.mark.slow
NAME = "emu-faults"
LONG = {"max_tokens": 1000, "stop": ["never to be said"]}


@pytest.fixture(scope="module")
def served(local_ray: None, tiny_dir: Path) -> Iterator[Caller]:
    from ray import serve

    port = free_port()
    serve.start(http_options={"port": port})
    try:
        app = build({"model": str(tiny_dir), "requests_per_replica": "2", "drain_s": "20"})
        serve.run(app, name=NAME, route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield Caller(client)
    finally:
        serve.shutdown()


def kill_replica() -> None:
    """Ends the process of the one replica."""
    import ray
    from ray.util import list_named_actors

    actors: list[Any] = list_named_actors(all_namespaces=True)
    (found,) = [actor for actor in actors if f"{NAME}#engine#" in actor["name"]]
    ray.kill(ray.get_actor(found["name"], found["namespace"]))


def test_metrics_have_the_figures_of_replicas(served: Caller) -> None:
    served.ask("a", max_tokens=2)
    text = served.client.get("/metrics").text
    assert "emu_first_token_seconds_count 1.0" in text
    (line,) = [each for each in text.splitlines() if each.startswith("emu_engine_running{")]
    assert 'replica="' in line and line.endswith(" 0.0")


def test_a_killed_replica_is_replaced_and_nothing_is_lost_that_had_not_begun(
    served: Caller,
) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "stream": True, **LONG}
    with served.client.stream("POST", CHAT, json=body) as begun:
        lines = begun.iter_lines()
        next(lines)
        kill_replica()
        rest = [line for line in lines if line.startswith("data: {")]
    assert '"code": "replica_lost"' in rest[-1] or '"code":"replica_lost"' in rest[-1]
    answer = served.ask("a", max_tokens=2)  # waits for the replica that replaces it
    assert answer.status_code == 200 or error_of(answer)[0] == 503
    deadline = time.monotonic() + 120
    reasons: set[str] = set()
    while (health := served.client.get("/health")).status_code != 200:
        reasons.add(health.json()["reason"])
        assert time.monotonic() < deadline, reasons
        time.sleep(0.2)
    assert served.ask("a", max_tokens=2).status_code == 200


def test_health_says_that_no_replica_lives(served: Caller) -> None:
    kill_replica()
    deadline = time.monotonic() + 30
    while (health := served.client.get("/health")).status_code == 200:
        assert time.monotonic() < deadline, "health is ok while no replica lives"
        time.sleep(0.1)
    assert health.json()["status"] == "not ready"
    assert health.json()["reason"].startswith("no replica runs")
    while served.client.get("/health").status_code != 200:
        time.sleep(0.2)


def test_a_server_that_drains_finishes_what_runs(served: Caller) -> None:
    from ray import serve

    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(served.ask("a", **LONG))

    running = threading.Thread(target=ask)
    running.start()
    time.sleep(0.5)
    handle = serve.get_app_handle(NAME)
    draining = handle.drain.remote(30.0)
    deadline = time.monotonic() + 20
    while (refused := served.ask("b", max_tokens=1)).status_code == 200:
        assert time.monotonic() < deadline
    assert error_of(refused)[0] == 503 and refused.headers["Retry-After"] == "5"
    assert "about to stop" in served.client.get("/health").json()["reason"]
    assert draining.result(timeout_s=60) == 0
    running.join()
    assert answers[0].status_code == 200
