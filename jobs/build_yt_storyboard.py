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

    OUT/ledger records every video and every link, kept or dropped with the reason; OUT/report.html shows the result.
    A stopped run resumes when it is started again with the same options.
    """

    videos: tuple[str, ...]
    """Files of video records, one per line (.jsonl, .jsonl.gz, .jsonl.zip) or .json file; paths, patterns or addresses.
    A record is a player response, an info.json of yt-dlp, or {id, spec, duration, subtitles}."""
    out: str
    """Folder or address of the dataset to write. An unfinished build with the same options is resumed."""
    level: Annotated[int, Field(ge=0, le=99)] | None = None
    """Level of the storyboard: 0 is the overview, 1 to 3 have larger frames. None: the one with the largest frames."""
    language: str = "en"
    """Language of the subtitles. Manual subtitles are preferred to automatic ones, and `en` to `en-GB`."""
    require_subtitles: bool = False
    """Drop videos without readable subtitles. Otherwise their samples contain frames only."""
    max_positions: Annotated[int, Field(ge=36, le=1_000_000)] = 2048
    """Maximum positions per sample, at least 36: 34 per frame, 1 per token. Longer videos give several samples."""
    tokenizer: str | None = None
    """Sentencepiece file or model folder, to count tokens exactly. None: an estimate that errs on the high side."""
    released_rounding: bool = False
    """Compute times in whole seconds, as the released tools of Emu do. For comparison only: these times drift."""
    sheet_path: str = "{id}/{level}_{sheet}.jpg"
    """Path of a sheet below --media. The file is JPEG or WebP, whatever its extension."""
    subtitle_path: str | None = "{id}.{language}.vtt"
    """Path of subtitles below --media: WebVTT, JSON3, XML or a transcript, whatever the extension.
    None: use only the subtitles in the records."""
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
