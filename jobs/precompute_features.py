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
    """Computes the visual encoder's outputs for every image of a dataset, and stores them beside it.

    Training with --use-features then reads them instead of running the (frozen) encoder. For example:
        emu features --data mmc4 --recipe tiny
        emu train --data mmc4 --recipe tiny --out run --use-features

    Shard by shard; a run that was stopped resumes where it stopped. The manifest names the features, with the hash of
    the encoder's weights, once all shards have them. Models, formats and sizes: docs/features.md.
    """

    data: str
    """Folder or address of a finished dataset; features are written into it."""
    model: str | None = None
    """A model folder; a checkpoint file or pretrained tag of EVA-CLIP; or MODEL:TAG, MODEL:FILE, hf-hub:OWNER/NAME
    of open_clip. None: the encoder of --recipe, initialised from --seed."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes of the encoder without --model, and of one in a checkpoint file."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of an initialised encoder, 0 to 2^63 - 1: the --seed of the training that will use the features."""
    patches: Patches = "float16"
    """How patch tokens are stored; none: CLIP's embedding alone. float32: exactly as the encoder computes them.
    int8: one scale per token, off by at most 1/254 of the token's largest value."""
    precision: Precision = "float32"
    """Of matrix products, as of training; bfloat16 (autocast) is several times as fast on a GPU."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Images that pass through the encoder at once, 1 to 65536. It decides how rows are grouped in the files."""
    decode_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Threads of each worker that decode images ahead of the encoder, 1 to 1024."""
    num_workers: Annotated[int, Field(ge=0, le=10_000, description="0 works without Ray")] = 2
    """Workers on Ray at most, each with a copy of the encoder. 0: this process, without Ray."""
    cpus_per_worker: Annotated[float, Field(gt=0, le=1024)] = 1
    """Cores of each worker on Ray."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=64)] | None = None
    """GPUs of each worker on Ray, such as 0.5 for two workers on one. None: 1 where the cluster has any."""
    estimate: bool = False
    """Print the disk that the features would take, in every form, and end before anything is computed."""
    overwrite: bool = False
    """Replace features of another encoder that the dataset has."""

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
