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
    """Builds an OBELICS dataset: fetches the images of the documents and keeps their positions between the texts.

    For example:
        emu build obelics --documents 'obelics/*.parquet' --out obelics --limit 200

    OUT/ledger records every document and every link, kept or dropped with the reason; OUT/report.html shows the
    result. A stopped run resumes when it is started again with the same options.
    """

    documents: tuple[str, ...]
    """Parquet files as OBELICS distributes them, with the columns images and texts.
    One or more paths, quoted patterns or addresses (hf://datasets/…). A pattern must not match files in OUT."""
    out: str
    """Folder or address of the dataset to write. An unfinished build with the same options is resumed."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Shorter side of published images in pixels, 8 to 16384. Larger images are shrunk to it, smaller ones are kept."""
    max_images: Annotated[int, Field(ge=1, description="None for no limit")] | None = 256
    """Maximum number of images to fetch per document; the first ones are chosen. None: no limit."""
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
