#!/usr/bin/env python3
"""Builds an instruction dataset: dialogues of LLaVA, Alpaca, ShareGPT, VideoChat and Video-ChatGPT in, shards out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import tyro
from pydantic import Field

from jobs.building import BuildOptions, build, build_job
from jobs.paths import job_path
from pipelines.download.config import MIB, FetchConfig
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.validation import Checked


@dataclass(frozen=True)
class BuildInstruct(Checked):
    """Builds an instruction dataset: dialogues with roles, their images and videos at their places.

    Images on disk, named as in the files:
        emu build instruct --dialogues llava_instruct_158k.json --media coco/train2017 --out llava

    Every record and every image is recorded in OUT/ledger, kept or with the reason why not; OUT/report.html
    shows the result. A run that was stopped resumes when it is started again with the same options.
    """

    dialogues: tuple[str, ...]
    """Files of records: .json (an array, or one record after the other), .jsonl, each also .gz; .jsonl.zip.
    Paths, quoted patterns or addresses; several may follow. A pattern may not reach into OUT."""
    out: str
    """Folder or address of the dataset. An unfinished build of the same options in it is resumed."""
    form: Literal["auto", "llava", "alpaca", "sharegpt", "videochat", "video_chatgpt"] = "auto"
    """Form of all records. auto finds it out for each from its fields (docs/data.md says how)."""
    strip_html: bool = True
    """Turn answers that are HTML as a whole, as in raw dumps of ShareGPT, into plain text."""
    system_messages: bool = True
    """Begin dialogues about one image or one video with the paper's system message, unless they have their own."""
    paper_filter: bool = False
    """Leave out what the paper left out of LLaVA: detailed descriptions, and answers with "on top of the back of"."""
    max_characters: Annotated[int, Field(ge=1, description="characters per dialogue")] = 200_000
    """Characters of a dialogue above which it is dropped."""
    video_suffix: str = ".mp4"
    """Suffix of videos that are named without one or by the .pkl file of their features (Video-ChatGPT)."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Pixels, 8 to 16384, of the shorter side to which larger images are resized. Smaller ones are never enlarged."""
    frames: FrameConfig = field(default_factory=FrameConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    build: Annotated[BuildOptions, tyro.conf.arg(name="")] = field(default_factory=BuildOptions)
    fetch: FetchConfig = field(default_factory=lambda: FetchConfig(max_bytes=64 * MIB))

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.out)


def build_instruct(options: BuildInstruct) -> str:
    """Build, resume or retry the dataset; returns the summary."""
    from pipelines.corpora.instruct import rules as instruct
    from pipelines.images.normalise import ImageConfig

    names = [f.name for f in fields(instruct.Rules) if f.name != "image"]
    chosen = {name: getattr(options, name) for name in names}
    rules = instruct.Rules(**chosen, image=ImageConfig(side=options.side))
    return build(instruct, options.dialogues, options.out, rules, options.fetch, options.build)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildInstruct, build_instruct, arguments)


if __name__ == "__main__":
    sys.exit(main())
