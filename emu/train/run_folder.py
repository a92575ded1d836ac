"""The metrics in the folder of a run, and their curves; its checkpoints are in `emu/train/checkpoint.py`.

    metrics.jsonl                                  one line per logged step
    skipped.jsonl                                  bad samples and steps that were skipped (`emu/train/faults.py`)
    curves.svg                                     losses and target variance over the steps
    tensorboard/                                   the same metrics for TensorBoard, where it is installed

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
| data_wait                    | share of the time since that line that the first rank waited for batches |
| tflops_per_s, mfu            | model FLOPs of all ranks (`emu/train/flops.py`), their share of a known peak |
| validation_text_loss/NAME, validation_visual_loss/NAME | on held-out samples (`emu/train/validation.py`) |
| text_loss/NAME, visual_loss/NAME, steps/NAME | of a mixture: mean losses of a corpus since that line, steps so far |
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    shown = [n for n in CURVES_SHOWN if any(row.get(n) for row in rows)]  # no lines of zeros
    charts = [
        _chart(
            CURVES_SHOWN[n][0], [(r["step"], r[n]) for r in rows if n in r], CURVES_SHOWN[n][1], k
        )
        for k, n in enumerate(shown)
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
