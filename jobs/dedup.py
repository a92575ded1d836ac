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
    """Merges finished datasets into a new one, without duplicates and without what --filters drop.

    For example:
        emu dedup laion coyo --out merged --dedup url image near_image near_text

    Of a group of duplicates the first sample is kept, in the order of the datasets and then of their samples.
    OUT/ledger names it for each dropped sample; OUT/report.html shows the largest groups.
    The input datasets are not changed.
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders or addresses of finished datasets.
    With more than one, each key is prefixed with the number of its dataset: 0-…, 1-…."""
    out: str = tyro.MISSING
    """Folder or address of the new dataset. An unfinished run with the same options is resumed."""
    dedup: tuple[Kind, ...] = ("url", "image")
    """Kinds of duplicates to drop; the first sample of a group is kept.
    url, sample, image and text drop equal ones; near_image compares perceptual hashes, near_text MinHash signatures."""
    overwrite: bool = False
    """Start over: delete the dataset in OUT."""
    fail_on_alarm: bool = False
    """End with an error instead of a warning if a filter or stage drops more than 90% of its input."""
    runner: Literal["ray", "local"] = "ray"
    """ray: use the cluster that the job was submitted to, or start a local Ray.
    local: run in this process, without Ray."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ValueError("data is empty, give one or more finished datasets")
        if job_path(self.out) in map(job_path, self.data):
            raise ValueError(f"out is {self.out!r}, one of the datasets; give another folder")


def dedup_datasets(options: DedupDatasets) -> str:
    """Write or resume the dataset; returns the summary."""
    from pipelines.core.folder import finished_manifest
    from pipelines.core.run import run
    from pipelines.core.storage import Storage
    from pipelines.publish.merge import merged_pipeline

    began, where = time.monotonic(), job_path(options.out)
    for dataset in map(job_path, (*options.data, *options.dedup_against)):
        finished_manifest(Storage(dataset))
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
