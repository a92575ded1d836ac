"""Metrics of a run: `metrics.jsonl`, a line a logged step, and `curves.svg` drawn from it.

| field             | meaning                                                                  |
|-------------------|--------------------------------------------------------------------------|
| step              | optimizer steps done, from 1                                             |
| loss, text_loss, visual_loss | over all ranks; loss = text + visual_weight * visual          |
| target_variance   | of the regression targets; near 0 means that they collapse               |
| gradient_norm     | before clipping                                                          |
| rate_factor       | part of the peak learning rates                                          |
| samples, images, positions | seen since the start of the run                                 |
| samples_per_s, images_per_s, positions_per_s | since the line before, over all ranks         |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS, CURVES = "metrics.jsonl", "curves.svg"
CURVE_FIELDS = ("text_loss", "visual_loss", "target_variance")
COLOURS = ("#2563eb", "#d97706", "#059669")
WIDTH, HEIGHT, MARGIN = 720, 180, 46


class MetricsFile:
    """Appends metrics of a run; lines of steps that are done again after a resume are taken out."""

    def __init__(self, out: Path, first_step: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / METRICS
        kept = [row for row in read_metrics(out) if row["step"] <= first_step]
        self.last: Mapping[str, Any] | None = kept[-1] if kept else None
        temporary = out / f".{METRICS}.{os.getpid()}"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self.path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.last = row


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run so far; a last line cut by a kill is left out."""
    path = out / METRICS
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_curves(out: Path) -> Path:
    """Draw the losses and the target variance over the steps into `curves.svg`."""
    rows = read_metrics(out)
    charts = [
        _chart(name, [(row["step"], row[name]) for row in rows], colour, number * HEIGHT)
        for number, (name, colour) in enumerate(zip(CURVE_FIELDS, COLOURS, strict=True))
    ]
    height = HEIGHT * len(charts)
    path = out / CURVES
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'style="max-width: 100%; height: auto" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(charts)}</svg>\n'
    )
    return path


def _chart(name: str, points: Sequence[tuple[int, float]], colour: str, top: int) -> str:
    """One curve with its name, its last value and the ends of its axes."""
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    wide, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN + 16

    def place(step: int, value: float) -> str:
        x = MARGIN + wide * (step - first) / max(1, last - first)
        y = top + MARGIN + tall * (1 - (value - low) / (high - low or 1))
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, value) for step, value in points)
    bottom = top + MARGIN + tall
    return (
        f'<text x="{MARGIN}" y="{top + MARGIN - 14}" font-weight="bold">{name.replace("_", " ")}: '
        f"{points[-1][1]:.4g}</text>"
        f'<text x="{MARGIN - 6}" y="{top + MARGIN + 4}" text-anchor="end" fill="#666">{high:.3g}</text>'
        f'<text x="{MARGIN - 6}" y="{bottom + 4}" text-anchor="end" fill="#666">{low:.3g}</text>'
        f'<text x="{MARGIN}" y="{bottom + 16}" fill="#666">step {first}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 16}" text-anchor="end" fill="#666">{last}</text>'
        f'<path d="M{MARGIN},{top + MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#ccc"/>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    )
