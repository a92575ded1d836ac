"""`report.html`: a run beside others, in one self-contained file: figures, options that differ, and curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from emu.train.checkpoint_folder import flat
from emu.train.curves import Curve, chart, points_of, svg
from emu.train.run_folder import METRICS, read_metrics

REPORT = "report.html"
COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d", "#7c3aed", "#525252")
"""Of the runs, in order; more runs than colours are refused."""
CHARTS = {
    "text_loss": "text loss",
    "visual_loss": "visual loss",
    "target_variance": "variance of the regression targets",
    "gradient_norm": "gradient norm",
    "rate_factor": "learning rate, relative to its peak",
    "positions_per_s": "positions per second",
    "mfu": "model FLOPs utilisation",
    "data_wait": "share of time waiting for data",
}
"""Fields that are plotted with their titles; fields by corpus follow."""
BY_CORPUS = {
    "validation_text_loss/": "validation text loss",
    "validation_visual_loss/": "validation visual loss",
    "text_loss/": "text loss",
    "visual_loss/": "visual loss",
}
SPEEDS = ("samples_per_s", "images_per_s", "positions_per_s", "mfu", "data_wait")


@dataclass(frozen=True)
class LoggedRun:
    """What the folder of a run tells: its name, its options and its metrics."""

    name: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def logged_run(folder: Path) -> LoggedRun:
    """The run in a folder; raises ValueError where there is none."""
    rows = read_metrics(folder)
    if not rows:
        raise ValueError(f"{folder}: no {METRICS} with a line; give the --out of a training")
    described = folder / "run.json"
    config = json.loads(described.read_text()) if described.is_file() else {}
    return LoggedRun(folder.absolute().name, flat(config), rows)


def write_report(folder: Path, others: Sequence[Path] = ()) -> Path:
    """Write the report of a run beside others into its folder; equal runs give equal reports.

    Raises ValueError for a folder without a run, and for more than six runs.
    """
    runs = [logged_run(path) for path in (folder, *others)]
    if len(runs) > len(COLOURS):
        raise ValueError(f"{len(runs)} runs in one report, the limit is {len(COLOURS)}")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("emu.train").joinpath("report.html.jinja").read_text())
    page = template.render(
        runs=[(run.name, colour) for run, colour in zip(runs, COLOURS, strict=False)],
        figures=figures(runs),
        differences=differences(runs),
        charts=charts(runs),
    )
    path = folder / REPORT
    path.write_text(page)
    return path


def figures(runs: Sequence[LoggedRun]) -> list[tuple[str, list[str]]]:
    """Rows of a table: a name, and its value in every run."""
    rows = [
        ("steps", [f"{run.rows[-1]['step']:,}" for run in runs]),
        *(
            (name, [_count(run, name) for run in runs])
            for name in ("samples", "images", "positions")
        ),
    ]
    names = ["text_loss", "visual_loss", "target_variance", *_by_corpus(runs)]
    rows += [(name, [_last(run, name) for run in runs]) for name in names]
    rows += [(f"{name}, median", [_median(run, name) for run in runs]) for name in SPEEDS]
    rows += [(n, [_count(run, n) for run in runs]) for n in ("bad_samples", "skipped_steps")]
    return [(name, values) for name, values in rows if any(value != "" for value in values)]


def differences(runs: Sequence[LoggedRun]) -> list[tuple[str, list[str]]]:
    """The options in which the runs differ, and their values."""
    names = sorted({name for run in runs for name in run.config})
    values = [(name, [json.dumps(run.config.get(name)) for run in runs]) for name in names]
    return [(name, row) for name, row in values if len(set(row)) > 1]


def charts(runs: Sequence[LoggedRun]) -> list[tuple[str, str]]:
    """Title and SVG of each chart, a curve per run."""
    titles = dict(CHARTS)
    for name in _by_corpus(runs):
        kind, _, corpus = name.partition("/")
        titles[name] = f"{BY_CORPUS[kind + '/']}, {corpus}"
    drawn: list[tuple[str, str]] = []
    for name, title in titles.items():
        pairs = zip(runs, COLOURS, strict=False)
        shape = chart(title, [Curve(points_of(run.rows, name), colour) for run, colour in pairs])
        if shape:
            drawn.append((title, svg(shape)))
    return drawn


def _by_corpus(runs: Sequence[LoggedRun]) -> list[str]:
    present = {name for run in runs for row in run.rows for name in row if "/" in name}
    return [name for kind in BY_CORPUS for name in sorted(present) if name.startswith(kind)]


def _last(run: LoggedRun, name: str) -> str:
    points = points_of(run.rows, name)
    return _number(points[-1][1]) if points else ""


def _count(run: LoggedRun, name: str) -> str:
    return f"{run.rows[-1][name]:,}" if name in run.rows[-1] else ""


def _median(run: LoggedRun, name: str) -> str:
    points = points_of(run.rows, name)
    return _number(statistics.median(value for _, value in points)) if points else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
