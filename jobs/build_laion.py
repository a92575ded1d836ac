#!/usr/bin/env python3
"""Builds a LAION dataset: Parquet metadata with links in, webdataset shards of image-text pairs out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from pydantic import Field

from jobs.building import BuildOptions, build, build_job
from jobs.paths import job_path
from pipelines.corpora.laion.cuts import Cuts
from pipelines.download.config import FetchConfig
from schemas.validation import Checked


@dataclass(frozen=True)
class BuildLaion(Checked):
    """Builds a LAION dataset: fetches the images that the metadata link to, and writes pairs.

    For example:
        emu build laion --metadata 'part-*.snappy.parquet' --out laion --limit 1000 --cuts.max-punsafe 0.5

    Reads LAION-400M, LAION-2B-en and its cuts, Re-LAION and LAION-COCO. Every row and every link is recorded in
    OUT/ledger, kept or with the reason why not. A run that was stopped resumes when it is started again.
    """

    metadata: tuple[str, ...]
    """The Parquet files: paths, quoted patterns or addresses (s3://bucket/part-*.parquet,
    hf://datasets/OWNER/NAME/*.parquet); several may follow. A pattern may not reach into OUT."""
    out: str
    """Folder or address of the dataset. An unfinished build of the same options in it is resumed."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Pixels, 8 to 16384, of the shorter side to which larger images are resized. Smaller ones are never enlarged."""
    caption_column: str | None = None
    """Column of the caption. None takes top_caption where a file has it (LAION-COCO, whose TEXT is the old alt text),
    else TEXT; the other texts stay in the metadata."""
    max_caption_chars: Annotated[int, Field(ge=1, le=10_000_000, description="characters")] = 10_000
    """Characters of a caption above which its row is dropped."""
    cuts: Cuts = field(default_factory=Cuts)
    build: Annotated[BuildOptions, tyro.conf.arg(name="")] = field(default_factory=BuildOptions)
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.out)


def build_laion(options: BuildLaion) -> str:
    """Build, resume or retry the dataset; returns the summary."""
    from pipelines.corpora.laion import rules as laion
    from pipelines.images.normalise import ImageConfig

    image = ImageConfig(side=options.side)
    texts = (options.caption_column, options.max_caption_chars)
    rules = laion.Rules(*texts, options.cuts, image)
    return build(laion, options.metadata, options.out, rules, options.fetch, options.build)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildLaion, build_laion, arguments)


if __name__ == "__main__":
    sys.exit(main())
