#!/usr/bin/env python3
"""Writes the page of a training, beside others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from jobs.cli import run_job
from jobs.paths import folder_path
from schemas.validation import Checked


@dataclass(frozen=True)
class ReportRuns(Checked):
    """Writes RUN/report.html: figures and curves of a training, compared with other runs.

    For example:
        emu report runs/a --compare runs/b runs/c
    """

    run: tyro.conf.Positional[str]
    """Folder of a training (its --out), finished or not."""
    compare: tuple[str, ...] = ()
    """Folders of up to five other runs."""


def report_runs(options: ReportRuns) -> str:
    """Write the page; returns a line with its path."""
    from pathlib import Path

    from emu.train.report import write_report

    run, *others = (Path(folder_path(path)) for path in (options.run, *options.compare))
    return f"report     {write_report(run, others)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(ReportRuns, report_runs, arguments)


if __name__ == "__main__":
    sys.exit(main())
