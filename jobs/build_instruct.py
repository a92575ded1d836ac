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
    """Builds an instruction dataset: dialogues with roles, with images and videos in their positions.

    For example, with images on disk under the names in the records:
        emu build instruct --dialogues llava_instruct_158k.json --media coco/train2017 --out llava

    OUT/ledger records every record and every image, kept or dropped with the reason; OUT/report.html shows the
    result. A stopped run resumes when it is started again with the same options.
    """

    dialogues: tuple[str, ...]
    """Files of records: .json (an array, or one record after another), .jsonl, .json.gz, .jsonl.gz, .jsonl.zip.
    One or more paths, quoted patterns or addresses. A pattern must not match files in OUT."""
    out: str
    """Folder or address of the dataset to write. An unfinished build with the same options is resumed."""
    form: Literal["auto", "llava", "alpaca", "sharegpt", "videochat", "video_chatgpt"] = "auto"
    """Form of all records. auto: detect the form of each record from its fields (see docs/instruct.md)."""
    strip_html: bool = True
    """Convert answers that consist of HTML, as in raw dumps of ShareGPT, to plain text."""
    system_messages: bool = True
    """Start dialogues about one image or one video with the paper's system message, unless they have their own."""
    paper_filter: bool = False
    """Drop what the paper excluded from LLaVA: detailed descriptions, and answers with "on top of the back of"."""
    max_characters: Annotated[int, Field(ge=1, description="characters per dialogue")] = 200_000
    """Drop dialogues with more characters than this."""
    video_suffix: str = ".mp4"
    """File extension of videos named without one, or by the .pkl file of their features (Video-ChatGPT)."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Shorter side of published images in pixels, 8 to 16384. Larger images are shrunk to it, smaller ones are kept."""
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
