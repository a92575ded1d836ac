"""The training loop: plain PyTorch on one device, as a single process or as one of several ranks.

A run is a folder: `run.json` (its configuration), `checkpoints/` (unless they are kept elsewhere), `metrics.jsonl`,
`curves.svg`, and at the end `model/`. Started again it resumes from the newest checkpoint. On the same machine the
resulting weights are bit-identical to those of an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emu.train.checkpoint import CheckpointWriter, load_checkpoint
from emu.train.checkpoint_folder import (
    FOLDER,
    Checkpoint,
    CheckpointError,
    Progress,
    check_same_run,
    check_version,
    checkpoints,
    read_progress,
)
from emu.train.compiled import check_compiler
from emu.train.faults import Faults
from emu.train.meters import CorpusLosses, WorkMeter
from emu.train.parallel import is_sharded
from emu.train.plan import Plan
from emu.train.plan import TrainPlan as TrainPlan
from emu.train.run_folder import MetricsFile, add_missing, write_curves
from emu.train.step import Ranks, Stepper, StepResult, TrainingError
from emu.train.stopping import Stopped, StopRequest
from emu.train.trackers import check_trackers
from emu.train.validation import Validation

log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any], Checkpoint | None], None]
"""Called on every rank when a checkpoint has begun, with the newest metrics and the checkpoint before, which is whole;
and once more with the last one."""


def _nothing(metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
    """No report."""


SUMMARY = "summary.json"
COUNTS = ("samples", "images", "positions", "bad_samples", "skipped_steps")


@dataclass(frozen=True)
class Summary:
    """Counts and last losses of a finished run."""

    steps: int
    samples: int
    images: int
    positions: int
    text_loss: float
    visual_loss: float
    target_variance: float
    alarms: tuple[str, ...]
    model: str
    bad_samples: int = 0
    skipped_steps: int = 0


def train(
    plan: Plan,
    ranks: Ranks | None = None,
    device: torch.device | None = None,
    report: Report = _nothing,
    clock: Callable[[], float] = time.perf_counter,
    stop: StopRequest | None = None,
) -> Summary:
    """Train to the last step of the plan, from the newest checkpoint if there is one.

    On SIGINT, SIGTERM or a request in `stop`, on any rank, all ranks save after the step in progress. Where a rank is
    lost, one of the others saves the last step that all have taken, if it holds all weights.

    Raises:
        CheckpointError: if the output folder holds another run.
        DatasetError: for unusable data.
        Stopped: if that was asked for, when a checkpoint has been saved.
        TrainingError: for too many bad samples or steps without a finite loss in a row.
    """
    stop = stop or StopRequest()
    with stop.on_signals():
        run = Run(plan, ranks or Ranks(), device or torch.device("cpu"), clock)
        try:
            while run.step < plan.train.steps:
                run.advance(stop.is_made)
                is_end = run.is_stopped or run.step == plan.train.steps
                tell = _nothing if run.is_stopped else report  # nobody may be there to take it
                if is_end or run.step % plan.train.checkpoint_every == 0:
                    run.checkpoint(tell)
                if is_end:
                    run.wait_for_checkpoint(tell)
                if run.is_stopped and run.step < plan.train.steps:
                    raise Stopped(run.step, stop.signal or signal.SIGTERM)
            return run.finish()
        except (Stopped, TrainingError):
            raise
        except Exception:
            run.rescue()
            raise
        finally:
            run.close()


class Run:
    """A run in progress on one rank."""

    def __init__(
        self, plan: Plan, ranks: Ranks, device: torch.device, clock: Callable[[], float]
    ) -> None:
        self.plan, self.ranks, self.clock = plan, ranks, clock
        self.out = Path(plan.out)
        self.stage = plan.open(ranks, device)
        self.model, self.optimizer = self.stage.model, self.stage.optimizer
        self.stream = self.stage.stream
        self.step = 0
        self.is_stopped = False
        """True after a step in which a rank was asked to stop."""
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self._resume()
        self._taken = (self.step, self.stream.state(), dict(self.counts))
        """Step, position in the data and counts that the weights belong to."""
        self.writer = CheckpointWriter(
            checkpoint_folder(plan), self.model, self.optimizer, plan.train.keep_checkpoints
        )
        self.stepper = Stepper(self.stage.losses, self.optimizer, plan.train, ranks, device)
        self.metrics: MetricsFile | None = None
        if ranks.is_first:
            trackers, described = plan.train.trackers, plan.configuration()
            self.metrics = MetricsFile(self.out, self.step, trackers, described)
        self.faults = Faults(self.out, ranks, plan.train, self.step)
        self.row: dict[str, Any] = {}
        self.alarms: list[str] = []
        self._logged = (clock(), dict(self.counts))
        self._computed = 0  # positions since the last line, padding included
        self._rates = 0.0
        self._work = WorkMeter(self.stage.cost, plan.train, ranks.share.world_size, device)
        self._corpora = CorpusLosses(self.stream.mixture)
        self._waited = 0.0  # seconds for data since the last line
        self._validation = Validation(self.stream, self.stage.losses, plan.train, ranks, device)

    def advance(self, stops: bool = False) -> None:
        """Take one step, which `stops` makes the last on every rank; log its metrics if they are due."""
        config = self.plan.train
        began = self.clock()
        batches = self.stream.next_step()
        self._waited += self.clock() - began
        self._rates = self.stage.set_rates(self.step)
        result = self.stepper.step(batches, self.step, len(self.stream.bad), stops)
        self.step += 1
        self.is_stopped = result.is_last
        self.counts["samples"] += result.num_sequences
        self.counts["images"] += result.num_images
        self.counts["positions"] += result.num_positions
        self.counts["bad_samples"] += result.num_bad
        self.counts["skipped_steps"] += not result.is_finite
        self._taken = (self.step, self.stream.state(), dict(self.counts))
        self.faults.watch(self.step, result, self.stream)
        self._computed += result.num_computed
        self._work.add(result)
        if result.is_finite:
            self._corpora.add(self.stream.corpus, result)
            self._watch(result)
        is_validated = self._validation.is_due(self.step)
        is_last = self.step == config.steps or self.is_stopped
        if is_validated or is_last or self.step % config.log_every == 0:
            self._log(result, is_validated)

    def checkpoint(self, report: Report) -> None:
        """Begin to write a checkpoint, on all ranks, when the one before is whole."""
        state = Progress(self.step, self.stream.state(), self.counts, self.plan.configuration())
        before = self.writer.save(state)
        if self.ranks.is_first:
            write_curves(self.out)
        report(dict(self.row) | {"step": self.step}, before)

    def wait_for_checkpoint(self, report: Report) -> None:
        """Wait until the last checkpoint is whole."""
        report(dict(self.row) | {"step": self.step}, self.writer.wait())

    def rescue(self) -> None:
        """After an error of one of several ranks: save alone the last step that all have taken.

        Of sharded weights no rank holds all, and weights that are being changed are of no step.
        """
        step, data, counts = self._taken
        if (
            not self.ranks.is_parallel
            or is_sharded(self.stage.losses)
            or self.stepper.is_updating
            or step == 0
        ):
            return
        try:
            saved = self.writer.save_alone(Progress(step, data, counts, self.plan.configuration()))
        except CheckpointError as error:
            log.error("%s", error)  # the error that comes after is the cause
            return
        if saved is not None:
            add_missing(self.out, self.row if self.row.get("step") == step else {})
            log.warning("rank=%d saved=%s after an error", self.ranks.share.rank, saved)

    def close(self) -> None:
        """End the threads of the run; a checkpoint that is being written is finished before."""
        self.stream.close()
        self.writer.close()
        if self.metrics:
            self.metrics.close(self.step == self.plan.train.steps)

    def finish(self) -> Summary:
        """Write `model/` and `summary.json` on the first rank."""
        folder = self.out / "model"
        last = (self.metrics.last if self.metrics else None) or self.row
        summary = Summary(
            steps=self.step,
            text_loss=last.get("text_loss", float("nan")),
            visual_loss=last.get("visual_loss", float("nan")),
            target_variance=last.get("target_variance", float("nan")),
            alarms=tuple(self.alarms),
            model=str(folder),
            **self.counts,
        )
        if self.ranks.is_first or self.stage.publishes_together:
            self.stage.publish(folder)
        if self.ranks.is_first:
            write_curves(self.out)
            described = json.dumps(dataclasses.asdict(summary), indent=2)
            (self.out / SUMMARY).write_text(described + "\n")
        self.ranks.barrier()
        return summary

    def _resume(self) -> None:
        check_resume(self.plan)
        found = checkpoints(checkpoint_folder(self.plan))
        if found:
            self._load(found[-1])
        elif self.ranks.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            described = json.dumps(self.plan.configuration(), indent=2, sort_keys=True)
            (self.out / "run.json").write_text(described + "\n")

    def _load(self, checkpoint: Checkpoint) -> None:
        progress = read_progress(checkpoint)
        load_checkpoint(checkpoint, self.model, self.optimizer)
        self.stream.load(progress.data)
        self.step, self.counts = progress.step, self.counts | dict(progress.counts)
        log.info("resumed step=%d checkpoint=%s", self.step, checkpoint)

    def _log(self, result: StepResult, is_validated: bool) -> None:
        now, (then, before) = self.clock(), self._logged
        validation = self._validation.measure() if is_validated else {}
        speeds = {
            f"{name}_per_s": (self.counts[name] - before[name]) / max(now - then, 1e-9)
            for name in ("samples", "images", "positions")
        }
        filled = (self.counts["positions"] - before["positions"]) / max(self._computed, 1)
        self._logged, self._computed = (self.clock(), dict(self.counts)), 0
        waited, self._waited = self._waited / max(now - then, 1e-9), 0.0
        self.row = {
            "step": self.step,
            "loss": result.total,
            "text_loss": result.text,
            "visual_loss": result.visual,
            "target_variance": result.target_variance,
            "gradient_norm": result.gradient_norm,
            "rate_factor": self._rates,
            **self.counts,
            **speeds,
            "filled": filled,
            "data_wait": waited,
            **self._work.taken(now - then),
            **self._corpora.taken(),
            **validation,
        }
        if self.metrics:
            self.metrics.write(self.row)
            text = " ".join(f"{name}={value:.5g}" for name, value in self.row.items())
            log.info("%s", text)

    def _watch(self, result: StepResult) -> None:
        """Raise an alarm, once, if the regression targets have become nearly equal."""
        limit = self.plan.train.collapse_variance
        if result.num_visual and result.target_variance < limit and not self.alarms:
            self.alarms.append(
                f"step {self.step}: variance {result.target_variance:.3g} of the regression targets is "
                f"below {limit:.3g}: they collapse, and a low visual loss is meaningless"
            )
            log.error("alarm %s", self.alarms[-1])


def checkpoint_folder(plan: Plan) -> str:
    """The folder or address of the checkpoints of a run."""
    return plan.checkpoints or str(Path(plan.out) / FOLDER)


def check_resume(plan: Plan) -> None:
    """Raise `CheckpointError` if the output folder does not allow what `plan.resume` asks for."""
    folder = checkpoint_folder(plan)
    check_version(folder)
    found = checkpoints(folder)
    if plan.resume == "must" and not found:
        raise CheckpointError(f"{plan.out}: no checkpoint to resume from; give the --out of a run")
    if plan.resume == "never" and found:
        raise CheckpointError(
            f"{plan.out}: holds a run with checkpoint {found[-1].name}; give another --out, or --resume auto"
        )
    if found:
        then = read_progress(found[-1]).config
        check_same_run(then, plan.configuration(), found[-1], Path(plan.out))


def finished_summary(plan: Plan) -> Summary | None:
    """The summary of a run that has taken all steps of the plan and written its model; None if work is left.

    Raises `CheckpointError` as `check_resume` does.
    """
    check_resume(plan)
    out = Path(plan.out)
    found = checkpoints(checkpoint_folder(plan))
    is_done = bool(found) and read_progress(found[-1]).step >= plan.train.steps
    if not (is_done and (out / SUMMARY).is_file() and (out / "model").is_dir()):
        return None
    return read_summary(out)


def read_summary(out: Path) -> Summary:
    """The summary that the first rank wrote at the end of a run."""
    values = json.loads((out / SUMMARY).read_text())
    return Summary(**values | {"alarms": tuple(values["alarms"])})


def check_plan(plan: Plan) -> None:
    """Raise, before any worker starts, if output, weights, features, data or lengths do not fit.

    Of weights only the headers are read, and of the data one step.
    """
    check_resume(plan)
    check_trackers(plan.train.trackers)
    if plan.train.compile:
        check_compiler(torch.cuda.is_available())
    plan.check()
