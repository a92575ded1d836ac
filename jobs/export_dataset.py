#!/usr/bin/env python3
"""Writes the samples of a finished dataset as Parquet tables, which `datasets` and other readers of tables open."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jobs.building import build_job, build_runner, export_parquet
from jobs.paths import job_path
from schemas.validation import Checked


@dataclass(frozen=True)
class ExportDataset(Checked):
    """Writes the samples of a finished dataset as Parquet tables in DATASET/parquet/ and lists them in its card.

    For example:
        emu export mmc4

    Then `datasets.load_dataset("mmc4", split="train")` gives rows with texts, decoded images, times and roles.
    A stopped run resumes when it is started again.
    """

    dataset: Annotated[str, tyro.conf.Positional]
    """Folder or address of a finished dataset."""
    runner: Literal["ray", "local"] = "local"
    """ray: use the cluster that the job was submitted to, or start a local Ray.
    local: run in this process, without Ray."""


def export(options: ExportDataset) -> str:
    """Write the tables that are missing; returns the summary."""
    began = time.monotonic()
    with ExitStack() as sessions:
        runner = build_runner(options.runner, None, sessions)
        num_done = export_parquet(job_path(options.dataset), runner)
    return (
        f"\ntables     {options.dataset}/parquet, {num_done:,} of them written now\n"
        f"time       {time.monotonic() - began:.1f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(ExportDataset, export, arguments)


if __name__ == "__main__":
    sys.exit(main())
