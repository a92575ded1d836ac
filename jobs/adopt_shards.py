#!/usr/bin/env python3
"""Makes a dataset of webdataset shards that exist, without copying them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from jobs.building import build_job, build_runner, build_summary
from jobs.choices import Choices
from jobs.cli import OptionError
from jobs.paths import job_path
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.validation import Checked

if TYPE_CHECKING:
    from pipelines.readers.tars import TarSource


@dataclass(frozen=True)
class AdoptShards(Checked):
    """Turns existing webdataset shards (img2dataset's, video2dataset's, your own) into a dataset without copying them.

    For example, writing manifest.json, index/ and ledger/ beside the tars:
        emu adopt laion400m --filters image_size:min_side=128 --dedup image text

    Every sample is read and its images are decoded. Samples that cannot be used for training, or are dropped by
    --filters and --dedup, are recorded in the ledger with the reason; they stay in the tar, and no job reads them.
    For clips, frames are extracted and written to OUT/shards.
    emu features, emu inspect, emu export and emu train accept the folder like one written by a build.
    """

    shards: Annotated[str, tyro.conf.Positional]
    """Folder or address with the *.tar files, such as s3://bucket/laion or hf://datasets/OWNER/NAME."""
    out: str | None = None
    """Folder or address of the dataset. None: beside the tars. Required if the tars are read-only."""
    corpus: Annotated[
        str, Field(pattern="^[a-z0-9_]+$", description="lower-case letters, digits, _")
    ] = "adopted"
    """Name of the corpus. Shard names and sample keys start with it."""
    limit: Annotated[int, Field(ge=1, description="None takes all tars")] | None = None
    """Adopt at most this number of tars, for a trial. None: all."""
    frames: FrameConfig = field(default_factory=FrameConfig)
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Shorter side of frames cut from clips in pixels, 8 to 16384. Larger frames are shrunk; images are not changed."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    runner: Literal["ray", "local"] = "local"
    """ray: use the cluster that the job was submitted to, or start a local Ray.
    local: run in this process, without Ray."""
    choices: Annotated[Choices, tyro.conf.arg(name="")] = field(default_factory=Choices)
    overwrite: bool = False
    """Start over: delete what an earlier run wrote. The tars are kept."""


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
    require_tars(source, folder)
    choices = options.choices
    needs_images = bool(choices.filters or choices.dedup)
    pipeline = choices.applied(adopted.pipeline(source, options.corpus, where, clips, needs_images))
    pipeline = adopted.without_images_at_barriers(pipeline)
    with ExitStack() as sessions:
        runner = build_runner(options.runner, None, sessions)
        manifest = run(pipeline, where, runner, overwrite=options.overwrite)
    seconds = time.monotonic() - began
    return build_summary(manifest, pipeline.reasons, "samples", where, seconds)


def require_tars(source: TarSource, folder: str) -> None:
    """Raise `OptionError` for a folder without tars; it says where they are, or what to do with loose files."""
    from pipelines.readers.files import InputError

    try:
        _ = source.names
    except InputError as error:
        below = "" if "://" in folder else next(map(str, Path(folder).glob("**/*.tar")), "")
        hint = (
            f"the tars are further below, such as '{below}': adopt that folder"
            if below
            else "emu adopt reads webdataset shards; for loose files (output_format=files of img2dataset and "
            "video2dataset) use emu build laion or emu build webvid with --media"
        )
        raise OptionError(f"{error}; {hint}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(AdoptShards, adopt, arguments)


if __name__ == "__main__":
    sys.exit(main())
