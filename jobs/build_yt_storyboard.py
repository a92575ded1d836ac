#!/usr/bin/env python3
"""Builds a YT-Storyboard dataset: storyboards and subtitles of videos in, webdataset shards of frames and texts out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from pydantic import Field

from jobs.building import BuildOptions, build, build_job
from jobs.paths import job_path
from pipelines.download.config import FetchConfig
from schemas.validation import Checked


@dataclass(frozen=True)
class BuildYtStoryboard(Checked):
    """Builds a YT-Storyboard dataset: cuts storyboards into frames and merges them with subtitles by time.

    For example, with sheets and subtitles on disk (SHEETS/ID/LEVEL_NUMBER.jpg, SHEETS/ID.en.vtt):
        emu build yt-storyboard --videos 'videos/*.json' --media SHEETS --out storyboards --limit 20

    Every video and every link is recorded in OUT/ledger, kept or with the reason why not; OUT/report.html shows the
    result. A run that was stopped resumes when it is started again with the same options.
    """

    videos: tuple[str, ...]
    """Files of videos, one per line (.jsonl, .jsonl.gz, .jsonl.zip) or one per .json file: player responses, info.json
    of yt-dlp, or {id, spec, duration, subtitles}. Paths, quoted patterns or addresses."""
    out: str
    """Folder or address of the dataset. An unfinished build of the same options in it is resumed."""
    level: Annotated[int, Field(ge=0, le=99)] | None = None
    """Number of the storyboard's level: 0 is the overview, 1 to 3 have larger frames. None takes the largest."""
    language: str = "en"
    """Of the subtitles; manual ones before automatic ones, `en` before `en-GB`."""
    require_subtitles: bool = False
    """Drop videos without subtitles that can be read. Otherwise they become frames alone."""
    max_positions: Annotated[int, Field(ge=36, le=1_000_000)] = 2048
    """Positions of a sample at most, at least 36. A frame takes 34; a longer video becomes several samples."""
    tokenizer: str | None = None
    """Sentencepiece file, or folder of a model, that counts tokens exactly. None estimates them, rather high."""
    released_rounding: bool = False
    """Times as the released tools of Emu compute them, in whole seconds: for comparison, they drift."""
    sheet_path: str = "{id}/{level}_{sheet}.jpg"
    """Path of a sheet in --media (JPEG or WebP, whatever its ending)."""
    subtitle_path: str | None = "{id}.{language}.vtt"
    """Path of subtitles in --media (WebVTT, JSON3, XML or transcript, whatever its ending). None: only the records'."""
    build: Annotated[BuildOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: BuildOptions(samples_per_shard=100)
    )
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.out)


def build_yt_storyboard(options: BuildYtStoryboard) -> str:
    """Build, resume or retry the dataset; returns the summary."""
    from jobs.cli import checked_options
    from pipelines.corpora.yt_storyboard import rules as storyboards

    names = ("level", "language", "require_subtitles", "max_positions", "released_rounding")
    names += ("sheet_path", "subtitle_path", "tokenizer")
    with checked_options():
        rules = storyboards.Rules(**{name: getattr(options, name) for name in names})
    return build(storyboards, options.videos, options.out, rules, options.fetch, options.build)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildYtStoryboard, build_yt_storyboard, arguments)


if __name__ == "__main__":
    sys.exit(main())
