"""Where the metrics of a run go beside `metrics.jsonl`: TensorBoard where it is installed, and services on request.

A tracker is an entry of `TRACKERS`. Each continues its own run when a run of ours resumes; where it sends to is its own
environment (`WANDB_PROJECT`, `WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, ...). A service that
cannot be reached costs a warning, not the run: `metrics.jsonl` has every line.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

BOARD = "tensorboard"
PROJECT = "emu"
RETRY_S = 60.0
"""Seconds without a try after a call that failed."""
MAX_SHARE = 0.1
"""Of the time of a run that waiting for a failing service may take."""

Log = Callable[[Mapping[str, float], int], None]
"""Takes the finite numbers of a line, and its step."""
Close = Callable[[bool], None]
"""Sends what is not sent yet; takes whether the run has taken all its steps."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it."""

    out: Path
    config: Mapping[str, Any]
    first_step: int
    """Steps done before; lines of later steps are repeated."""
    logged_step: int = 0
    """The step of the last line before: those up to it have been sent."""

    @property
    def identity(self) -> str:
        """The same for every start of the run in this folder."""
        return hashlib.sha256(str(self.out.absolute()).encode()).hexdigest()[:16]


def _tensorboard(run: TrackedRun) -> tuple[Log, Close]:
    from torch.utils.tensorboard import SummaryWriter  # takes half a second

    # hides the steps that are repeated
    writer = SummaryWriter(str(run.out / BOARD), purge_step=run.first_step + 1)

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, lambda is_done: writer.close()


def _wandb(run: TrackedRun) -> tuple[Log, Close]:
    wandb: Any = importlib.import_module("wandb")
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    started = wandb.init(
        project=project,
        id=run.identity,
        name=run.out.name,
        dir=str(run.out),
        config=dict(run.config),
        resume="allow",
    )
    return (
        lambda numbers, step: started.log(dict(numbers), step=step, commit=True),
        lambda is_done: started.finish(exit_code=0 if is_done else 1),
    )


def _mlflow(run: TrackedRun) -> tuple[Log, Close]:
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    kept = run.out / "mlflow_run"
    started = mlflow.start_run(
        run_id=kept.read_text() if kept.is_file() else None, run_name=run.out.name
    )
    if not kept.is_file():
        kept.write_text(started.info.run_id)
        mlflow.log_dict(dict(run.config), "run.json")
    return (
        _once(run, lambda numbers, step: mlflow.log_metrics(dict(numbers), step=step)),
        lambda is_done: mlflow.end_run("FINISHED" if is_done else "KILLED"),
    )


def _trackio(run: TrackedRun) -> tuple[Log, Close]:
    trackio: Any = importlib.import_module("trackio")
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=f"{run.out.name}-{run.identity[:6]}",
        config=dict(run.config),
        resume="allow",
    )
    return (
        _once(run, lambda numbers, step: trackio.log(dict(numbers), step=step)),
        lambda is_done: trackio.finish(),
    )


def _once(run: TrackedRun, log: Log) -> Log:
    """`log` without the steps that have been sent before, where a service would keep both values."""

    def later(numbers: Mapping[str, float], step: int) -> None:
        if step > run.logged_step:
            log(numbers, step)

    return later


TRACKERS: dict[str, Callable[[TrackedRun], tuple[Log, Close]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that is unknown or whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name!r}; there are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"tracker {name}: its package is not installed; pip install {name}, or leave it out of --train.trackers"
            )


class Trackers:
    """The trackers of a run, TensorBoard among them where it is installed; none of them ends the run by failing."""

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        check_trackers(names)
        is_there = importlib.util.find_spec("tensorboard") is not None
        every = dict.fromkeys((*(("tensorboard",) if is_there else ()), *names))
        self._trackers = [_Tracker(name, run) for name in every]

    def write(self, row: Mapping[str, Any]) -> None:
        """Pass the finite numbers of a line on."""
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != "step" and math.isfinite(value)
        }
        for tracker in self._trackers:
            tracker.write(numbers, row["step"])

    def close(self, is_done: bool) -> None:
        """Send what is not sent yet, and say whether the run has taken all its steps."""
        for tracker in self._trackers:
            tracker.close(is_done)


class _Tracker:
    """A tracker that keeps the lines that it could not send, and sends them later in their order."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name, self._run = name, run
        self._opened: tuple[Log, Close] | None = None
        self._unsent: deque[tuple[Mapping[str, float], int]] = deque()
        self._next_try_s = 0.0
        self._is_failing = False
        self._try(self._send)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Send a line, unless the last try has failed just now."""
        self._unsent.append((numbers, step))
        if time.monotonic() >= self._next_try_s:
            self._try(self._send)

    def close(self, is_done: bool) -> None:
        """Try once more to send what is left, and end."""
        self._try(self._send)
        if self._unsent:
            log.warning(
                "tracker=%s unsent=%d: these lines are in metrics.jsonl alone",
                self._name,
                len(self._unsent),
            )
        if self._opened is not None:
            close = self._opened[1]
            self._try(lambda: close(is_done))

    def _send(self) -> None:
        if self._opened is None:
            self._opened = TRACKERS[self._name](self._run)
        while self._unsent:
            self._opened[0](*self._unsent[0])
            self._unsent.popleft()

    def _try(self, work: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - clients of services raise classes of their own
            now = time.monotonic()
            self._next_try_s = now + max(RETRY_S, (now - began) / MAX_SHARE)
            if not self._is_failing:
                cause = f"{type(error).__name__}: {error}"
                log.warning(
                    "tracker=%s cause=%r: the run continues; its lines are in metrics.jsonl, and sending is retried",
                    self._name,
                    cause,
                )
            self._is_failing = True
        else:
            self._is_failing = False
