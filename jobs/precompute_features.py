#!/usr/bin/env python3
"""Computes the visual encoder's outputs for every image of a published dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from jobs.building import build_job
from jobs.feature_stage import add_features, estimate
from jobs.paths import job_path
from schemas.features import Patches, Precision
from schemas.validation import Checked


@dataclass(frozen=True)
class PrecomputeFeatures(Checked):
    """Computes the visual encoder's outputs for every image of a dataset and stores them in it.

    Training with --use-features then reads them instead of running the (frozen) encoder. For example:
        emu features --data mmc4 --recipe tiny
        emu train --data mmc4 --recipe tiny --out run --use-features

    A stopped run resumes with the next shard. When all shards have features, the manifest records them with the hash
    of the encoder's weights. Models, formats and sizes: docs/features.md.
    """

    data: str
    """Folder or address of a finished dataset. The features are written into it."""
    model: str | None = None
    """Encoder: a model folder, a checkpoint file or pretrained tag of EVA-CLIP, or a model of open_clip.
    Models of open_clip are MODEL:TAG, MODEL:FILE or hf-hub:OWNER/NAME, such as ViT-B-32:laion2b_s34b_b79k.
    None: the visual encoder of --recipe, initialised from --seed."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes of the encoder if there is no --model, or if --model is a checkpoint file."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of a randomly initialised encoder, 0 to 2^63 - 1. Give the --seed of the training that uses the features."""
    patches: Patches = "float16"
    """Format of the stored patch tokens. none: only CLIP's embedding. float32: exactly as the encoder computes them.
    int8: one scale per token; the error is at most 1/254 of the token's largest value."""
    precision: Precision = "float32"
    """Precision of matrix products, as in training. bfloat16 (autocast) is several times as fast on a GPU."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Images per call of the encoder, 1 to 65536. It also determines how rows are grouped in the files."""
    decode_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Threads per worker that decode images ahead of the encoder, 1 to 1024."""
    num_workers: Annotated[int, Field(ge=0, le=10_000, description="0 works without Ray")] = 2
    """Maximum number of Ray workers, each with its own copy of the encoder. 0: this process, without Ray."""
    cpus_per_worker: Annotated[float, Field(gt=0, le=1024)] = 1
    """CPU cores per Ray worker."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=64)] | None = None
    """GPUs per Ray worker; 0.5 lets two workers share one. None: 1 if the cluster has GPUs, otherwise 0."""
    estimate: bool = False
    """Print the disk space of the features in every format, and exit without computing them."""
    overwrite: bool = False
    """Replace features of another encoder or format in the dataset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.data)


def precompute(options: PrecomputeFeatures) -> str:
    """The estimate, or the features and their summary."""
    return estimate(options) if options.estimate else add_features(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(PrecomputeFeatures, precompute, arguments)


if __name__ == "__main__":
    sys.exit(main())
