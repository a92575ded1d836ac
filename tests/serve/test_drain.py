"""SIGTERM to `jobs/serve.py`: requests in progress end within a bound, and new ones are refused."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import Caller, error_of
from tests.serve.test_job import command, running

LONG = {
    "modalities": ["text", "image"],
    "image": {"height": 128, "width": 128, "num_inference_steps": 25},
    "max_tokens": 150,
    "ignore_eos": True,
}
"""A reply that takes seconds."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_lets_running_requests_end_and_refuses_new_ones(
    repository: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    arguments = ["--model", str(tiny_dir), "--port", "0", "--drain-s", "200"]
    with (
        running(command(repository, *arguments), tmp_path / "log") as (program, url),
        httpx.Client(base_url=url, timeout=200) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        caller = Caller(client)
        streamed = threads.submit(caller.stream, "a red circle", **LONG)
        whole = [threads.submit(caller.ask, f"{number}", **LONG) for number in range(2)]
        time.sleep(3)  # so that they run
        program.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while (refused := caller.ask("b", max_tokens=1)).status_code == 200:
            assert time.monotonic() < deadline, "it continues as if there had been no signal"
            time.sleep(0.05)
        assert error_of(refused)[0] == 503 and refused.headers["Retry-After"] == "5"
        assert not all(each.done() for each in whole), "nothing ran when the first one was refused"
        for each in whole:
            assert each.result().status_code == 200, each.result().text
            assert each.result().json()["choices"][0]["message"]["images"]
        chunks = streamed.result()
        assert any(chunk["choices"][0]["delta"].get("images") for chunk in chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert program.wait(120) == 0
    assert "requests_ended_early" not in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requests_that_take_longer_than_the_drain_are_ended(
    repository: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    arguments = ["--model", str(tiny_dir), "--port", "0", "--drain-s", "1"]
    endless = LONG | {"image": {"height": 1024, "width": 1024, "num_inference_steps": 100}}
    with (
        running(command(repository, *arguments), tmp_path / "log") as (program, url),
        httpx.Client(base_url=url, timeout=200) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        asked = threads.submit(Caller(client).ask, "a red circle", **endless)
        time.sleep(2)
        program.send_signal(signal.SIGTERM)
        assert program.wait(120) == 0
        error = asked.exception(60)
        assert isinstance(error, httpx.HTTPError) or asked.result().status_code >= 500
    assert "requests_ended_early=1 drain_s=1" in (tmp_path / "log").read_text()
