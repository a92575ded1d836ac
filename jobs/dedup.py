#!/usr/bin/env python3
"""Writes finished datasets once more as one, without their duplicates."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import tyro

from jobs.building import build_job, build_runner, build_summary
from jobs.choices import Choices, Kind
from jobs.paths import job_path


@dataclass(frozen=True)
class DedupDatasets(Choices):
    """Writes finished datasets once more as one, without their duplicates and what --filters drop.

    For example:
        emu dedup laion coyo --out merged --dedup url image near_image near_text

    Of samples that are duplicates, the first stays: datasets in their order, samples in theirs. The ledger of OUT
    names it for each that is dropped, OUT/report.html shows the largest groups; the datasets are not changed.
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders or addresses of finished datasets. Of several, the keys get their number in front."""
    out: str = tyro.MISSING
    """Folder or address of the new dataset. An unfinished one of the same options is resumed."""
    dedup: tuple[Kind, ...] = ("url", "image")
    """Duplicates to drop, of which the first stays: same url, sample, image (bytes) or text; near_image (perceptual
    hash), near_text (MinHash)."""
    overwrite: bool = False
    """Start over: delete the dataset in OUT."""
    fail_on_alarm: bool = False
    """End with an error, instead of a warning, where a rule drops more than 90% of what it sees."""
    runner: Literal["ray", "local"] = "ray"
    """ray: on the cluster that the job was submitted to, else on a local Ray that the job starts.
    local: in this process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ValueError("data is empty, give one or more finished datasets")
        if job_path(self.out) in map(job_path, self.data):
            raise ValueError(f"out is {self.out!r}, one of the datasets; give another folder")


def dedup_datasets(options: DedupDatasets) -> str:
    """Write or resume the dataset; returns the summary."""
    from pipelines.core.run import run
    from pipelines.publish.merge import merged_pipeline

    began, where = time.monotonic(), job_path(options.out)
    pipeline = options.applied(merged_pipeline(tuple(map(job_path, options.data))))
    with ExitStack() as sessions:
        manifest = run(
            pipeline,
            where,
            build_runner(options.runner, None, sessions),
            overwrite=options.overwrite,
            fail_on_alarm=options.fail_on_alarm,
        )
    seconds = time.monotonic() - began
    return build_summary(manifest, pipeline.reasons, "samples", options.out, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(DedupDatasets, dedup_datasets, arguments)


if __name__ == "__main__":
    sys.exit(main())
