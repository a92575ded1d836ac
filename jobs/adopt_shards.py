#!/usr/bin/env python3
"""Makes a dataset of webdataset shards that exist, without copying them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from jobs.building import build_job, build_runner, build_summary
from jobs.paths import job_path
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.validation import Checked


@dataclass(frozen=True)
class AdoptShards(Checked):
    """Makes a dataset of webdataset shards that exist (img2dataset's, video2dataset's, your own), without copying them.

    For example, writing manifest.json, index/ and ledger/ beside the tars:
        emu adopt laion400m

    Every sample is read and its images are decoded; what cannot be trained on is in the ledger with the reason.
    Of clips, frames are cut out and written to OUT/shards.
    Then emu features, emu inspect, emu export and emu train take the folder as one that a build wrote.
    """

    shards: Annotated[str, tyro.conf.Positional]
    """Folder or address (s3://bucket/laion, hf://datasets/…) whose *.tar are taken."""
    out: str | None = None
    """Folder or address of the dataset; None writes it beside the tars. Needed where these are read-only."""
    corpus: Annotated[str, Field(pattern="^[a-z0-9_]+$", description="letters, digits, _")] = (
        "adopted"
    )
    """Name of the corpus; names of shards and keys of samples begin with it."""
    limit: Annotated[int, Field(ge=1, description="None takes all tars")] | None = None
    """Tars to take at most, for a trial."""
    frames: FrameConfig = field(default_factory=FrameConfig)
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Pixels, 8 to 16384, of the shorter side to which larger frames of clips are resized. Images stay as they are."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    runner: Literal["ray", "local"] = "local"
    """ray: on the cluster that the job was submitted to, else on a local Ray that the job starts.
    local: in this process."""
    overwrite: bool = False
    """Start over: delete what an earlier run wrote; the tars stay."""


def adopt(options: AdoptShards) -> str:
    """Adopt the shards or resume; returns the summary."""
    from pipelines.core.run import run
    from pipelines.corpora import adopted
    from pipelines.images.normalise import ImageConfig
    from pipelines.readers.tars import TarSource
    from pipelines.transforms.frames import VideoContent

    began, folder = time.monotonic(), job_path(options.shards).rstrip("/")
    where = job_path(options.out or options.shards)
    source = TarSource((f"{folder}/*.tar",), base=str(Path.cwd()), limit=options.limit)
    clips = VideoContent(options.frames, ImageConfig(side=options.side), options.limits)
    pipeline = adopted.pipeline(source, options.corpus, where, clips)
    with ExitStack() as sessions:
        runner = build_runner(options.runner, None, sessions)
        manifest = run(pipeline, where, runner, overwrite=options.overwrite)
    seconds = time.monotonic() - began
    return build_summary(manifest, pipeline.reasons, "samples", where, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(AdoptShards, adopt, arguments)


if __name__ == "__main__":
    sys.exit(main())
