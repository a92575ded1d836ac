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
    """Builds a LAION dataset: fetches the images listed in the metadata and writes image-text pairs.

    For example:
        emu build laion --metadata 'part-*.snappy.parquet' --out laion --limit 1000 --cuts.max-punsafe 0.5

    Reads LAION-400M, LAION-2B-en and its subsets, Re-LAION and LAION-COCO. OUT/ledger records every row and every
    link, kept or dropped with the reason; OUT/report.html shows the result.
    A stopped run resumes when it is started again with the same options.
    """

    metadata: tuple[str, ...]
    """Parquet files: one or more paths, quoted patterns or addresses.
    For example 'part-*.snappy.parquet', s3://bucket/part-*.parquet or hf://datasets/OWNER/NAME/*.parquet.
    A pattern must not match files in OUT."""
    out: str
    """Folder or address of the dataset to write. An unfinished build with the same options is resumed."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Shorter side of published images in pixels, 8 to 16384. Larger images are shrunk to it, smaller ones are kept."""
    caption_column: str | None = None
    """Column of the caption. None: top_caption if the file has it, otherwise TEXT.
    (In LAION-COCO, TEXT is the old alt text.) The other text columns are kept in the metadata of the sample."""
    max_caption_chars: Annotated[int, Field(ge=1, le=10_000_000, description="characters")] = 10_000
    """Drop rows whose caption has more characters than this."""
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
