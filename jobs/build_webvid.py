#!/usr/bin/env python3
"""Builds a WebVid dataset: clips with captions in, webdataset shards with frames out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from pydantic import Field

from jobs.building import BuildOptions, build, build_job
from jobs.paths import job_path
from pipelines.corpora.webvid.rewrite import RewriteConfig
from pipelines.download.config import MIB, FetchConfig
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.validation import Checked


def fetch_defaults() -> FetchConfig:
    """Clips are larger than images, and their hosts need longer."""
    return FetchConfig(max_bytes=64 * MIB, deadline_s=120.0)


@dataclass(frozen=True)
class BuildWebvid(Checked):
    """Builds a WebVid dataset: fetches clips or reads them from a folder, extracts frames and cleans captions.

    For example, with clips in FOLDER/videos/027701_027750/1053841541.mp4:
        emu build webvid --metadata results_2M_val.csv --media FOLDER --out webvid --limit 200

    OUT/ledger records every row and every clip, kept or dropped with the reason; OUT/report.html shows the result.
    A stopped run resumes when it is started again with the same options.
    """

    metadata: tuple[str, ...]
    """Files of rows: .csv, .csv.gz or .parquet with the columns videoid, name, page_dir, contentUrl.
    One or more paths, quoted patterns or addresses. A pattern must not match files in OUT."""
    out: str
    """Folder or address of the dataset to write. An unfinished build with the same options is resumed."""
    path: str | None = None
    """Path of a clip below --media, such as '{page_dir}/{videoid}.mp4'. None: detect which usual layout is in use.
    Usual layouts: videos/{page_dir}/{videoid}.mp4, {page_dir}/{videoid}.mp4 and {videoid}.mp4."""
    frames: FrameConfig = field(default_factory=FrameConfig)
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Shorter side of published frames in pixels, 8 to 16384. Larger frames are shrunk to it, smaller ones are kept."""
    clean: bool = True
    """Remove words about camera, resolution and stock use from captions. The removed words are kept in `meta`."""
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    build: Annotated[BuildOptions, tyro.conf.arg(name="")] = field(default_factory=BuildOptions)
    fetch: FetchConfig = field(default_factory=fetch_defaults)

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.out)


def build_webvid(options: BuildWebvid) -> str:
    """Build, resume or retry the dataset; returns the summary."""
    from pipelines.corpora.webvid import rules as webvid
    from pipelines.images.normalise import ImageConfig

    media, image = options.build.media_path, ImageConfig(side=options.side)
    path = options.path or webvid.found_path(media)
    made_by = (options.frames, image, path, options.clean, options.rewrite, options.limits)
    rules = webvid.Rules(*made_by)
    return build(webvid, options.metadata, options.out, rules, options.fetch, options.build)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildWebvid, build_webvid, arguments)


if __name__ == "__main__":
    sys.exit(main())
