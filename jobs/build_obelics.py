#!/usr/bin/env python3
"""Builds an OBELICS dataset: documents with links in, webdataset shards with images at their places out."""

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
class BuildObelics(Checked):
    """Builds an OBELICS dataset: fetches the images of the documents, and writes them between their texts.

    For example:
        emu build obelics --documents 'obelics/*.parquet' --out obelics --limit 200

    Every document and every link is recorded in OUT/ledger, kept or with the reason why not; OUT/report.html
    shows the result. A run that was stopped resumes when it is started again with the same options.
    """

    documents: tuple[str, ...]
    """The Parquet files as OBELICS distributes them, with the columns images and texts.
    Paths, quoted patterns or addresses (hf://datasets/…); several may follow. A pattern may not reach into OUT."""
    out: str
    """Folder or address of the dataset. An unfinished build of the same options in it is resumed."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Pixels, 8 to 16384, of the shorter side to which larger images are resized. Smaller ones are never enlarged."""
    max_images: Annotated[int, Field(ge=1, description="None for no limit")] | None = 256
    """Images to fetch per document at most: the first ones. None takes all."""
    build: Annotated[BuildOptions, tyro.conf.arg(name="")] = field(default_factory=BuildOptions)
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.out)


def build_obelics(options: BuildObelics) -> str:
    """Build, resume or retry the dataset; returns the summary."""
    from pipelines.corpora.obelics import rules as obelics
    from pipelines.images.normalise import ImageConfig

    rules = obelics.Rules(options.max_images, ImageConfig(side=options.side))
    return build(obelics, options.documents, options.out, rules, options.fetch, options.build)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildObelics, build_obelics, arguments)


if __name__ == "__main__":
    sys.exit(main())
