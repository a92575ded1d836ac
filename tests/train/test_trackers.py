"""Every tracker gets every line of a run once, also when the run is cut off after a checkpoint and resumes."""

import importlib.util
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch

from emu.train.loop import Run, TrainPlan, check_plan, train
from emu.train.run_folder import read_metrics
from emu.train.step import Ranks
from emu.train.trackers import TRACKERS, TrackedRun, Trackers
from tests.train.plans import mini_plan

SERVICES = [name for name in TRACKERS if name != "tensorboard"]
BLOCK, HEADER = 32_768, 7  # of wandb's file, in the format of LevelDB's log

Lines = dict[int, dict[str, float]]


@pytest.mark.parametrize("name", SERVICES)
def test_a_tracker_without_its_package_is_refused(tmp_path: Path, name: str):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    plan = mini_plan(tmp_path, trackers=(name,))
    with pytest.raises(
        ValueError, match=f"pip install {name}, or leave it out of --train.trackers"
    ):
        check_plan(plan)


def test_what_was_sent_before_a_resume_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The trackers that keep both values of a step; TensorBoard purges, wandb leaves the second one out."""
    from emu.train import trackers

    sent: list[int] = []
    tracked = TrackedRun(tmp_path, {}, first_step=2, logged_step=3)
    log = trackers._once(tracked, lambda numbers, step: sent.append(step))
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda run: (log, sent.append))
    service = Trackers(["tensorboard"], tracked)
    for step in (3, 4):
        service.write({"step": step, "loss": 1.0})
    service.close(is_done=True)
    assert sent == [4, True]


class Service(ThreadingHTTPServer):
    """A metrics service that keeps the steps posted to it."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.steps: list[int] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Service)
        self.server.steps.append(int(self.path.strip("/")))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on standard error."""


def over_http(port: int, closed: list[bool]) -> Callable[[TrackedRun], tuple[Any, Any]]:
    """An entry of `TRACKERS` that posts to a local service, the first time when the run starts."""

    def post(step: int) -> None:
        urlopen(Request(f"http://127.0.0.1:{port}/{step}", method="POST"), timeout=10).close()

    def open_tracker(run: TrackedRun) -> tuple[Any, Any]:
        post(0)
        return (lambda numbers, step: post(step)), closed.append

    return open_tracker


def test_a_service_that_goes_away_costs_a_warning_and_gets_its_lines_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from emu.train import trackers

    monkeypatch.setattr(trackers, "RETRY_S", 0.0)
    monkeypatch.setattr(trackers, "MAX_SHARE", 1e9)  # the next line tries again
    service, closed = Service(), []
    port = service.server_port
    monkeypatch.setitem(TRACKERS, "tensorboard", over_http(port, closed))
    tracked = Trackers([], TrackedRun(tmp_path, {}, first_step=0))
    tracked.write({"step": 1, "loss": 1.0})
    service.end()
    for step in (2, 3):
        tracked.write({"step": step, "loss": 1.0})
    [warning] = [record.getMessage() for record in caplog.records]
    assert "tracker=tensorboard" in warning and "refused" in warning
    again = Service(port)
    tracked.write({"step": 4, "loss": 1.0})
    tracked.close(is_done=True)
    again.end()
    assert (service.steps, again.steps, closed) == ([0, 1], [2, 3, 4], [True])


def test_a_run_whose_service_was_never_there_is_trained_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    service = Service()
    service.end()
    monkeypatch.setitem(TRACKERS, "tensorboard", over_http(service.server_port, []))
    train(mini_plan(tmp_path, steps=3, log_every=1))
    assert [row["step"] for row in read_metrics(tmp_path / "out")] == [1, 2, 3]
    said = [r.getMessage() for r in caplog.records if "tracker=tensorboard" in r.getMessage()]
    assert len(said) == 2 and "unsent=3" in said[1]


def from_mlflow(plan: TrainPlan) -> Lines:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    identity = (Path(plan.out) / "mlflow_run").read_text()
    run = client.get_run(identity)
    assert run.info.status == "FINISHED" and run.info.run_name == "out"
    lines: Lines = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(identity, name):
            assert name not in lines.setdefault(point.step, {}), f"{name} twice at {point.step}"
            lines[point.step][name] = point.value
    return lines


def from_trackio(plan: TrainPlan) -> Lines:
    import sqlite3

    import trackio

    [name] = [run.name for run in trackio.Api().runs("emu")]
    assert name.startswith("out-")
    [database] = (Path(plan.out).parent / "trackio").glob("emu*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
    assert len({step for step, _ in rows}) == len(rows)
    return {step: json.loads(numbers) for step, numbers in rows}


def from_wandb(plan: TrainPlan) -> Lines:
    """Of steps that are in two files the first one, which wandb's server keeps."""
    from wandb.proto.wandb_internal_pb2 import Record

    lines: Lines = {}
    for file in sorted(Path(plan.out).glob("wandb/offline-run-*/*.wandb")):
        deadline = time.monotonic() + 60  # another process writes, and ends a little later
        while time.monotonic() < deadline:
            records = [Record.FromString(data) for data in wandb_records(file.read_bytes())]
            if any(record.HasField("exit") for record in records):
                break
            time.sleep(0.1)
        for record in records:
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if values:
                numbers = {n: v for n, v in values.items() if not n.startswith("_")}
                lines.setdefault(int(values["_step"]), numbers)
    return lines


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of wandb's file: pieces with a checksum, a length and a kind, in blocks of 32 KB."""
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


READ: dict[str, Callable[[TrainPlan], Lines]] = {
    "mlflow": from_mlflow,
    "trackio": from_trackio,
    "wandb": from_wandb,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SERVICES)
def test_every_line_arrives_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(variable, value)  # before the import, which reads some of them
    pytest.importorskip(
        name, reason=f"{name} is not installed: pip install 'emu-platform[trackers]'"
    )
    plan = mini_plan(tmp_path, steps=5, checkpoint_every=2, trackers=(name,))
    cut_off_after_three_steps(plan)
    time.sleep(1)  # wandb's folders have a time in their names, in seconds
    train(plan)
    found = READ[name](plan)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "out")}
    assert sorted(found) == sorted(rows) == [1, 2, 3, 4, 5]
    exact = ("loss", "text_loss", "visual_loss", "gradient_norm", "samples", "positions")
    for step, row in rows.items():
        assert {n: found[step][n] for n in exact} == {n: row[n] for n in exact}, step
        assert set(found[step]) == set(row) - {"step"}


def cut_off_after_three_steps(plan: TrainPlan) -> None:
    """The checkpoint is that of two steps, so that the third one is taken again."""
    run = Run(plan, Ranks(), torch.device("cpu"), time.perf_counter)
    for _ in range(3):
        run.advance()
        if run.step == 2:
            run.checkpoint(lambda metrics, checkpoint: None)
    run.close()


def test_closing_says_whether_all_steps_were_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[Any] = []
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda run: (lambda *line: None, said.append))
    plan = mini_plan(tmp_path, steps=3, checkpoint_every=2)
    cut_off_after_three_steps(replace(plan, train=replace(plan.train, steps=5)))
    train(replace(plan, out=str(tmp_path / "other")))
    assert said == [False, True]
