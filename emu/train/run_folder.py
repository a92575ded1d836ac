"""The folder of a run: checkpoints, metrics and their curves.

    checkpoints/step-00000100/model.safetensors    weights; of a run that trains an adapter alone, the adapter
                              optimizer.pt         optimizer state (the moments of AdamW), by weight name
                              state.json           step, position in the data, configuration of the run
    metrics.jsonl                                  one line per logged step
    skipped.jsonl                                  bad samples and steps that were skipped (`emu/train/faults.py`)
    curves.svg                                     losses and target variance over the steps
    tensorboard/                                   the same metrics for TensorBoard, where it is installed

Checkpoints are written by `emu.weights.layout`, so a run that is killed while it writes leaves the
earlier checkpoints intact. The dropout masks follow from (seed, step, rank) and the
learning rates from the step, so no generator and no scheduler has a state to save.

| field of metrics.jsonl       | meaning                                                       |
|------------------------------|---------------------------------------------------------------|
| step                         | optimizer steps done, from 1                                  |
| loss, text_loss, visual_loss | over all ranks; loss = text + visual_weight * visual; null in a skipped step |
| target_variance              | of the regression targets; near 0 means that they collapse    |
| gradient_norm                | before clipping                                               |
| rate_factor                  | learning rates relative to their peaks                        |
| samples, images, positions   | processed since the start of the run                          |
| bad_samples, skipped_steps   | skipped since the start of the run                            |
| samples_per_s, images_per_s, positions_per_s | since the previous line, over all ranks       |
| filled                       | real positions among all that were computed since that line   |
| tflops_per_s, mfu            | model FLOPs of all ranks (`emu/train/flops.py`), their share of a known peak |
| text_loss/NAME, visual_loss/NAME, steps/NAME | of a mixture: mean losses of a corpus since that line, steps so far |
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from emu.models.language_model import LORA
from emu.weights.layout import new_directory, remove_directory, remove_unfinished

VERSION = 1
FOLDER = "checkpoints"
NAME = re.compile(r"^step-(\d{8,})$")
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"
METRICS, CURVES, BOARD = "metrics.jsonl", "curves.svg", "tensorboard"
CURVES_SHOWN = {
    "text_loss": ("text loss", "#2563eb"),
    "visual_loss": ("visual loss", "#d97706"),
    "target_variance": ("variance of the regression targets", "#059669"),
    "rate_factor": ("learning rate, relative to its peak", "#7c3aed"),
}
"""The fields of the metrics that are plotted, each with its title and colour."""
WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 46, 36
"""Pixels around a chart. Letters of 19 in 720 are legible at a width of 420."""
RENAMED = {
    "visual_wait_ratio": "visual_freeze_ratio",
    "window_odds": "window_probability",
    "image_first_odds": "image_first_probability",
}
"""Options whose names in older checkpoints differ: name there -> name today."""

ADDED = (
    "sequence.clip_length",
    "sequence.storyboard_length",
    "sequence.clip_frames",
    "sequence.dialogue_length",
)
"""Options that older checkpoints lack; they concern formats that those runs did not have."""


class CheckpointError(ValueError):
    """A checkpoint that does not belong to this run or version; names the difference."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run: steps done, position in the data, counts of what was processed, and its configuration."""

    step: int
    data: Mapping[str, Any]
    counts: Mapping[str, int]
    config: Mapping[str, Any]


def save_checkpoint(
    out: Path, model: nn.Module, optimizer: Optimizer, progress: Progress, keep: int = 2
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`; returns its directory."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    final = folder / f"step-{progress.step:08d}"
    if final.is_dir():
        return final
    weights = {name: tensor.contiguous() for name, tensor in saved_weights(model).items()}
    state = {"version": VERSION, "step": progress.step}
    state |= {"data": dict(progress.data), "counts": dict(progress.counts)}
    state |= {"config": dict(progress.config)}
    with new_directory(final, is_replaceable=lambda folder: False) as new:
        save_file(weights, new / WEIGHTS)
        torch.save(optimizer_state(optimizer), new / OPTIMIZER)
        (new / STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    keep_newest(out, keep)
    return final


def saved_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint: all, or the adapter where it alone is trained; `init` has the others."""
    state = model.state_dict()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    is_tuning = bool(trained) and all(LORA in name for name in trained)
    return {name: state[name] for name in trained} if is_tuning else state


def keep_newest(out: Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and what killed writers left."""
    remove_unfinished(out / FOLDER)
    for old in checkpoints(out)[:-keep]:
        remove_directory(old)


def checkpoints(out: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    folder = out / FOLDER
    found = [path for path in folder.glob("step-*") if NAME.match(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def read_progress(checkpoint: Path) -> Progress:
    """The progress saved in a checkpoint; raises `CheckpointError` for another version."""
    state = json.loads((checkpoint / STATE).read_text())
    if state["version"] != VERSION:
        raise CheckpointError(
            f"{checkpoint}: version {state['version']}, this release reads {VERSION}"
        )
    return Progress(state["step"], state["data"], state["counts"], _renamed(state["config"]))


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore weights and optimizer state exactly; every key must be present and fit."""
    device = next(model.parameters()).device
    weights = load_file(checkpoint / WEIGHTS, device=str(device))
    is_whole = set(weights) != set(saved_weights(model))  # then strict: it names what does not fit
    model.load_state_dict(weights, strict=is_whole or len(weights) == len(model.state_dict()))
    state = torch.load(checkpoint / OPTIMIZER, map_location=device, weights_only=True)
    load_optimizer_state(optimizer, state)


def check_same_run(then: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise `CheckpointError` naming the options in which a resumed run would differ."""
    before, after = _flat(then), _flat(now)
    absent = {name for name in ADDED if name not in before}
    names = [n for n in sorted({*before, *after} - absent) if before.get(n) != after.get(n)]
    if names == ["train.steps"]:
        raise CheckpointError(_other_length(before[names[0]], after[names[0]], where.parents[1]))
    if names:
        shown = "; ".join(f"{n}: was {before.get(n)!r}, now {after.get(n)!r}" for n in names[:5])
        raise CheckpointError(
            f"{where}: the run has another configuration: {shown}. Give the same options to resume it, or "
            "another --out to start a new run"
        )


def _other_length(then: int, now: int, out: Path) -> str:
    """Why a run cannot be given another length, and which options train on."""
    return (
        f"{out}: the learning rate of this run is scheduled over {then} steps, so its length cannot become {now}. "
        f"Resume it with --steps {then}; to train a finished run further, start another from its model: "
        f"--init {out / 'model'} --out ANOTHER_FOLDER --steps {max(1, now - then)}"
    )


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """The state of an optimizer by weight name, independent of its parameter groups."""
    return {
        name: dict(optimizer.state[weight])
        for group in optimizer.param_groups
        for name, weight in zip(group["weight_names"], group["params"], strict=True)
        if weight in optimizer.state
    }


def load_optimizer_state(
    optimizer: Optimizer, state: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Restore the state that `optimizer_state` gave; a weight without state has had no gradient so far."""
    weights = {
        name: weight
        for group in optimizer.param_groups
        for name, weight in zip(group["weight_names"], group["params"], strict=True)
    }
    unknown = sorted(set(state) - set(weights))
    if unknown:
        raise CheckpointError(f"the optimizer has no weight named {unknown[:3]}")
    for name, values in state.items():
        optimizer.state[weights[name]] = dict(values)


class MetricsFile:
    """Appends the metrics of a run; after a resume, the lines of steps that are repeated are removed first."""

    def __init__(self, out: Path, first_step: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / METRICS
        kept = [row for row in read_metrics(out) if row["step"] <= first_step]
        self.last: Mapping[str, Any] | None = kept[-1] if kept else None
        temporary = out / f".{METRICS}.{os.getpid()}"
        temporary.write_text("".join(map(_line, kept)))
        temporary.replace(self.path)
        self._board = _tensorboard(out, first_step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(_line(row))
        self.last = row
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()


def _tensorboard(out: Path, first_step: int) -> Any:
    """A writer of TensorBoard's files that hides the steps after `first_step`; None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # takes half a second

    return SummaryWriter(str(out / BOARD), purge_step=first_step + 1)


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run so far, without a last line that a kill has truncated."""
    path = out / METRICS
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{n: math.nan if v is None else v for n, v in row.items()} for row in rows]


def _line(row: Mapping[str, Any]) -> str:
    """A row as JSON, which has no numbers that are not finite: null stands for them."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite) + "\n"


def write_curves(out: Path) -> Path:
    """Plot losses, target variance and learning rate over the steps in `curves.svg`.

    Losses and variance have a logarithmic axis where they span more than a factor of ten.
    """
    rows = read_metrics(out)
    charts = [
        _chart(title, [(row["step"], row[name]) for row in rows if name in row], colour, number)
        for number, (name, (title, colour)) in enumerate(CURVES_SHOWN.items())
    ]
    path, height = out / CURVES, HEIGHT * len(charts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        'style="max-width: 100%; height: auto" font-family="sans-serif" font-size="19">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(charts)}</svg>\n'
    )
    return path


def _chart(title: str, points: Sequence[tuple[int, float]], colour: str, number: int) -> str:
    """One curve with its grid, its last value and the labels of its axes."""
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return ""
    values = [value for _, value in points]
    is_log = min(values) > 0 and max(values) / min(values) > 10
    x = _Axis(points[0][0], max(points[-1][0], points[0][0] + 1), LEFT, WIDTH - RIGHT)
    y = _Axis(
        min(values), max(values), (number + 1) * HEIGHT - BOTTOM, number * HEIGHT + TOP, is_log
    )
    line = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in points)
    scale = ", logarithmic" if is_log else ""
    return (
        f'<text x="{LEFT}" y="{y.end - 14:.0f}" font-weight="bold">{title}: {values[-1]:.3g}'
        f'<tspan font-weight="normal" fill="#666">{scale}</tspan></text>'
        + "".join(
            f'<path d="M{LEFT},{y.at(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y.at(tick) + 6:.1f}" text-anchor="end" fill="#555">{tick:.3g}</text>'
            for tick in y.ticks(4)
        )
        + "".join(
            f'<path d="M{x.at(tick):.1f},{y.end:.1f}V{y.start:.1f}" stroke="#eee"/>'
            f'<text x="{x.at(tick):.1f}" y="{y.start + 21:.0f}" text-anchor="middle" fill="#555">'
            f"{tick:,.0f}</text>"
            for tick in x.ticks(5)
            if tick == round(tick)
        )
        + f'<text x="{WIDTH - RIGHT}" y="{y.end - 14:.0f}" text-anchor="end" fill="#555">steps</text>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
    )


@dataclass(frozen=True)
class _Axis:
    """The values from `low` to `high` along the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1)

    def ticks(self, number: int) -> list[float]:
        """About `number` round values between the limits."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [v for v in every if self.low <= v <= self.high]
            return inside[:: max(1, len(inside) // number)]
        rough = (self.high - self.low) / number or abs(self.high) or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.7 * rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def _renamed(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {RENAMED.get(name, name): _renamed(inner) for name, inner in value.items()}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[prefix + name] = inner
    return flat
