"""The metrics in the folder of a run, and their curves; its checkpoints are in `emu/train/checkpoint.py`.

    metrics.jsonl                                  one line per logged step
    skipped.jsonl                                  bad samples and steps that were skipped (`emu/train/faults.py`)
    curves.svg                                     losses and target variance over the steps
    tensorboard/                                   the same metrics for TensorBoard (`emu/train/trackers.py`)
    report.html                                    the run beside others (`emu/train/report.py`)

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

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu.train.curves import Curve, chart, points_of, stacked
from emu.train.trackers import TrackedRun, Trackers

METRICS, CURVES = "metrics.jsonl", "curves.svg"
CURVES_SHOWN = {
    "text_loss": ("text loss", "#2563eb"),
    "visual_loss": ("visual loss", "#d97706"),
    "target_variance": ("variance of the regression targets", "#059669"),
    "rate_factor": ("learning rate, relative to its peak", "#7c3aed"),
}
"""The fields of the metrics that are plotted, each with its title and colour."""


class MetricsFile:
    """Appends the metrics of a run; after a resume, the lines of steps that are repeated are removed first."""

    def __init__(
        self,
        out: Path,
        first_step: int,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / METRICS
        rows = read_metrics(out)
        kept = list({row["step"]: row for row in rows if row["step"] <= first_step}.values())
        self.last: Mapping[str, Any] | None = kept[-1] if kept else None
        temporary = out / f".{METRICS}.{os.getpid()}"
        temporary.write_text("".join(map(_line, kept)))
        temporary.replace(self.path)
        logged_step = rows[-1]["step"] if rows else 0
        self._trackers = Trackers(trackers, TrackedRun(out, config or {}, first_step, logged_step))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(_line(row))
        self.last = row
        self._trackers.write(row)

    def close(self, is_done: bool) -> None:
        """Close the trackers; `is_done` says whether the run has taken all its steps."""
        self._trackers.close(is_done)


def add_missing(out: Path, row: Mapping[str, Any]) -> None:
    """Append the line of a step that the first rank, which was lost, has not written."""
    rows = read_metrics(out)
    if row and (not rows or rows[-1]["step"] < row["step"]):
        with (out / METRICS).open("a") as file:
            file.write(_line(row))


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
        chart(CURVES_SHOWN[name][0], [Curve(points_of(rows, name), CURVES_SHOWN[name][1])])
        for name in shown
    ]
    path = out / CURVES
    path.write_text(stacked(charts))
    return path
