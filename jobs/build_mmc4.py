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
    """Builds an MMC4 dataset: fetches the images that the documents link to and writes shards.

    For example:
        emu build mmc4 --documents 'docs_shard_*_v2.jsonl.zip' --out mmc4 --limit 200

    OUT/ledger records every document and every link, kept or dropped with the reason; OUT/report.html shows the
    result. A stopped run resumes when it is started again with the same options.
    """

    documents: tuple[str, ...]
    """Document files as MMC4 distributes them: .jsonl, .jsonl.gz or .jsonl.zip.
    One or more paths, quoted patterns or addresses, such as s3://bucket/docs_*.jsonl.zip.
    A pattern must not match files in OUT."""
    out: str
    """Folder or address of the dataset to write. An unfinished build with the same options is resumed."""
    side: Annotated[int, Field(ge=8, le=16384, description="pixels")] = 256
    """Shorter side of published images in pixels, 8 to 16384. Larger images are shrunk to it, smaller ones are kept."""
    min_similarity: Annotated[float, Field(ge=-1, le=1, description=COSINE)] = 0.32
    """Drop an image if its CLIP similarity to its sentence is below this, from -1 to 1.
    0.32 is the paper's threshold. OpenFlamingo's script uses 0.24, which keeps far more images."""
    max_images: Annotated[int, Field(ge=1, description="None for no limit")] | None = 256
    """Maximum number of images to fetch per document; the most similar ones are chosen. None: no limit.
    Most documents have only a few. The default bounds the cost of an extreme page."""
    clip: str | None = None
    """CLIP model that computes similarities for documents without a similarity_matrix.
    ViT-L-14:FILE, ViT-L-14:TAG, or a model folder of open_clip. None: these documents are dropped."""
    clip_gpus: Annotated[float, Field(ge=0, le=16)] = 0.0
    """GPUs per worker of --clip, 0 to 16; fractions share a GPU. 0: compute on the CPU."""
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
