#!/usr/bin/env python3
"""Builds an MMC4 dataset: documents with links in, webdataset shards with images out."""

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

COSINE = (
    "similarities are cosines: the paper's threshold is 0.32, a value in percent drops everything"
)


@dataclass(frozen=True)
class BuildMmc4(Checked):
    """Builds an MMC4 dataset: fetches the images that the documents link to, and writes shards.

    For example:
        emu build mmc4 --documents 'docs_shard_*_v2.jsonl.zip' --out mmc4 --limit 200

    Every document and every link is recorded in OUT/ledger, kept or with the reason why not; OUT/report.html
    shows the result. A run that was stopped resumes when it is started again with the same options.
    """

    documents: tuple[str, ...]
    """The document files as MMC4 distributes them: .jsonl, .jsonl.gz or .jsonl.zip.
    Paths, quoted patterns or addresses (s3://bucket/docs_*.jsonl.zip); several may follow.
    A pattern may not reach into OUT."""
    out: str
    """Folder or address of the dataset. An unfinished build of the same options in it is resumed."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Pixels, 8 to 16384, of the shorter side to which larger images are resized. Smaller ones are never enlarged."""
    min_similarity: Annotated[float, Field(ge=-1, le=1, description=COSINE)] = 0.32
    """CLIP similarity (-1 to 1) to its sentence below which an image is left out.
    0.32 is the paper's threshold; OpenFlamingo's script uses 0.24, which keeps far more."""
    max_images: Annotated[int, Field(ge=1, description="None for no limit")] | None = 256
    """Images to fetch per document at most: the most similar ones. None takes all.
    Real documents have a handful; the default only bounds what one extreme page can cost."""
    clip: str | None = None
    """CLIP for the similarities of documents without a similarity_matrix: ViT-L-14:FILE_OR_TAG, or a folder of
    open_clip. None drops these documents."""
    clip_gpus: Annotated[float, Field(ge=0, le=16)] = 0.0
    """GPUs, 0 to 16, that a worker of --clip takes, also parts of one; 0 computes on the CPU."""
    build: Annotated[BuildOptions, tyro.conf.arg(name="")] = field(default_factory=BuildOptions)
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.out)


def build_mmc4(options: BuildMmc4) -> str:
    """Build, resume or retry the dataset; returns the summary."""
    from pipelines.corpora.mmc4 import rules as mmc4
    from pipelines.images.clip import ClipWeights
    from pipelines.images.normalise import ImageConfig

    image = ImageConfig(side=options.side)
    clip = ClipWeights.parsed(options.clip, options.clip_gpus) if options.clip else None
    rules = mmc4.Rules(options.min_similarity, options.max_images, image, clip)
    return build(mmc4, options.documents, options.out, rules, options.fetch, options.build)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(BuildMmc4, build_mmc4, arguments)


if __name__ == "__main__":
    sys.exit(main())
