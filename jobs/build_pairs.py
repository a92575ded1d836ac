#!/usr/bin/env python3
"""Builds a dataset of synthetic image-text pairs: any number of scenes, without a download."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from pydantic import Field

from jobs.building import build_job, build_runner, build_summary
from jobs.choices import Choices
from jobs.paths import job_path
from pipelines.miniworld.config import PairsConfig
from schemas.validation import Checked


@dataclass(frozen=True)
class BuildPairs(Checked):
    """Builds a dataset of synthetic image-text pairs, for training small models and for trials.

    For example:
        emu build pairs --out pairs --num-pairs 5000

    Each image shows one coloured shape on a plain background, which its text describes. The same options always give
    the same bytes. A stopped run resumes when it is started again with the same options.
    """

    out: str
    """Folder or address of the dataset to write."""
    pairs: Annotated[PairsConfig, tyro.conf.arg(name="")] = field(default_factory=PairsConfig)
    samples_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Pairs per shard, 1 to 100000."""
    runner: Literal["ray", "local"] = "local"
    """ray: use the cluster that the job was submitted to, or start a local Ray.
    local: run in this process, without Ray."""
    choices: Annotated[Choices, tyro.conf.arg(name="")] = field(default_factory=Choices)
    overwrite: bool = False
    """Start over: delete the dataset in OUT."""


def build_pairs(options: BuildPairs) -> str:
    """Build or resume the dataset; returns the summary."""
    from pipelines.core.run import run
    from pipelines.miniworld.pairs import pairs_pipeline

    began, where = time.monotonic(), job_path(options.out)
    pipeline = options.choices.applied(pairs_pipeline(options.pairs, options.samples_per_shard))
    with ExitStack() as sessions:
        runner = build_runner(options.runner, None, sessions)
        manifest = run(pipeline, where, runner, overwrite=options.overwrite)
    seconds = time.monotonic() - began
    return build_summary(manifest, pipeline.reasons, "pairs", options.out, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildPairs, build_pairs, arguments)


if __name__ == "__main__":
    sys.exit(main())
