#!/usr/bin/env python3
"""Computes the visual encoder's outputs for every image of a published dataset."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from emu.recipes import RECIPES
from jobs.building import build_job
from jobs.paths import folder_path, job_path, weights_path
from jobs.progress import say, say_importing
from schemas.validation import Checked

if TYPE_CHECKING:
    import numpy as np

    from emu.config import EmuConfig
    from pipelines.transforms.features import FeatureStage
    from schemas.manifest import Manifest


@dataclass(frozen=True)
class PrecomputeFeatures(Checked):
    """Computes the visual encoder's outputs for every image of a dataset, and stores them beside it.

    Training with --use-features then reads them instead of running the (frozen) encoder. A first try:
        emu features --data mmc4 --recipe tiny
        emu train --data mmc4 --recipe tiny --out run --use-features

    Shard by shard; a run that was stopped resumes where it stopped. The manifest names the features, with
    the hash of the encoder's weights, once all shards have them.
    """

    data: str
    """Folder or address of a finished dataset; features are written into it."""
    init: str | None = None
    """A model folder whose visual encoder to use. None: that of --recipe, initialised from --seed."""
    vision_weights: str | None = None
    """EVA-CLIP instead: a pretrained tag of open_clip or a checkpoint file, as for emu train."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes of the encoder where --init is not given."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of an initialised encoder, 0 to 2^63 - 1: the --seed of the training that will use the features."""
    storage: Literal["float16", "int8"] = "float16"
    """int8 keeps one scale per token: half the size, off by at most 1/254 of the token's largest value."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Images that pass through the encoder at once, 1 to 65536. It decides how rows are grouped in the files."""
    num_workers: Annotated[int, Field(ge=0, le=10_000, description="0 works without Ray")] = 2
    """Workers on Ray, each with a copy of the encoder and a core or a GPU. 0: this process, without Ray."""
    overwrite: bool = False
    """Replace features of another encoder that the dataset has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        job_path(self.data)


class TowerEncoder:
    """Encoded images in, all tokens of the visual encoder out; on a GPU where the worker has one."""

    def __init__(
        self, config: EmuConfig, seed: int, init: str | None, vision_weights: str | None = None
    ) -> None:
        import torch

        from emu.train.start import start_tower

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.side = config.vision.image_size
        self.tower = start_tower(config, seed, init, vision_weights).to(self.device)

    def __call__(self, images: Sequence[bytes]) -> np.ndarray:
        """Tokens `[images, P, V]` in float32."""
        import torch

        from emu.models.visual import pixels_of

        with torch.inference_mode():
            return self.tower(pixels_of(images, self.side).to(self.device)).float().cpu().numpy()


def compute(options: PrecomputeFeatures) -> str:
    """Add the features that are missing; returns the summary."""
    from jobs.cluster import RunnerOnDemand
    from pipelines.core.run import extend, finished_manifest
    from pipelines.core.stage_runner import LocalRunner
    from pipelines.core.storage import Storage

    began, out = time.monotonic(), job_path(options.data)
    finished_manifest(Storage(out))  # before an encoder of many gigabytes is made
    say_importing("torch")
    stage = feature_stage(options)
    say("starting the workers")
    with ExitStack() as sessions:
        on_ray = RunnerOnDemand(sessions, gpu_per_worker=True)
        runner = on_ray if options.num_workers else LocalRunner()
        manifest, num_done = extend(stage, out, runner)
    return summary(manifest, num_done, options, time.monotonic() - began)


def feature_stage(options: PrecomputeFeatures) -> FeatureStage:
    """The stage, with the encoder that the options name."""
    from emu.train.start import start_tower
    from emu.weights.layout import load_config
    from emu.weights.store import weights_hash
    from pipelines.core.pipeline import Resources
    from pipelines.transforms.features import FeatureStage
    from schemas.features import FeatureInfo

    init = None if options.init is None else folder_path(options.init)
    config = RECIPES[options.recipe]().model if init is None else load_config(init)
    vision_weights = weights_path(options.vision_weights)
    tower = start_tower(config, options.seed, init, vision_weights)
    info = FeatureInfo(
        encoder=init or vision_weights or f"{options.recipe}, seed {options.seed}",
        weights_sha256=weights_hash(tower),
        num_tokens=config.vision.num_tokens,
        width=config.vision.width,
        storage=options.storage,
    )
    return FeatureStage(
        info,
        partial(TowerEncoder, config, options.seed, init, vision_weights),
        options.batch_size,
        options.overwrite,
        Resources(concurrency=options.num_workers or None),
    )


def summary(manifest: Manifest, num_done: int, options: PrecomputeFeatures, seconds: float) -> str:
    """What was computed, in words for a terminal."""
    features = manifest.features or {}
    lines = [
        "",
        f"features   {manifest.num_images:,} images, {features['num_tokens']} tokens of width "
        f"{features['width']} each, {features['storage']}",
        f"encoder    {features['encoder']} (weights {features['weights_sha256'][:12]}…)",
        f"shards     {len(manifest.shards):,} in {options.data}/features, {num_done:,} of them now",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return build_job(PrecomputeFeatures, compute, arguments)


if __name__ == "__main__":
    sys.exit(main())
