#!/usr/bin/env python3
"""Computes the visual encoder's outputs for every image of a published dataset."""

import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from emu.config import EmuConfig
from emu.data.images import pixels_of
from emu.recipes import RECIPES
from emu.train.start import start_tower
from emu.weights.layout import load_config
from emu.weights.store import weights_hash
from jobs.cli import BAD_VALUE, COMPLETE, FAILED, interrupted, report_error, start_logging
from jobs.cluster import ray_session
from jobs.paths import folder_path, job_path, weights_path
from pipelines.core.storage import Storage
from pipelines.transforms.features import (
    FeatureError,
    ShardFeatures,
    begin_features,
    finish_features,
    missing_shards,
    read_manifest,
)
from schemas.features import FeatureInfo
from schemas.manifest import Manifest
from schemas.validation import SchemaError

MAX_WORKERS, MAX_BATCH, MAX_SEED = 10_000, 65_536, 2**63 - 1


@dataclass(frozen=True)
class PrecomputeFeatures:
    """Computes the visual encoder's outputs for every image of a dataset, and stores them beside it.

    Training with --use-features then reads them instead of running the (frozen) encoder. A first try:
        jobs/precompute_features.py --data mmc4 --recipe tiny
        jobs/train_emu.py --data mmc4 --recipe tiny --out run --use-features

    Shard by shard; a run that was stopped goes on where it stopped. The manifest names the features, with
    the hash of the encoder's weights, when all shards have them.
    """

    data: str
    """Folder or address of a finished dataset; features are written into it."""
    init: str | None = None
    """A model directory whose visual encoder to use. None: that of --recipe, drawn from --seed."""
    vision_weights: str | None = None
    """EVA-CLIP instead: a pretrained tag of open_clip or a checkpoint file, as for jobs/train_emu.py."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes of the encoder where --init is not given."""
    seed: int = 0
    """Of the drawn encoder, 0 to 2^63 - 1: the --seed of the training that will use the features."""
    storage: Literal["float16", "int8"] = "float16"
    """int8 keeps one scale a token: half the size, off by at most 1/254 of the token's largest value."""
    batch_size: int = 32
    """Images that pass through the encoder at once, 1 to 65536. It decides how rows lie in the files."""
    num_workers: int = 2
    """Workers on Ray, each with a copy of the encoder and a core or a GPU. 0: this process, without Ray."""
    overwrite: bool = False
    """Replace features of another encoder that the dataset has."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= MAX_WORKERS:
            raise ValueError(
                f"num_workers={self.num_workers}: 0 (no Ray) or more, at most {MAX_WORKERS:,}"
            )
        if not 1 <= self.batch_size <= MAX_BATCH:
            raise ValueError(f"batch_size={self.batch_size}: 1 or more, at most {MAX_BATCH:,}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed={self.seed}: 0 or more, at most {MAX_SEED:,}")
        job_path(self.data)


class TowerEncoder:
    """Encoded images in, all tokens of the visual encoder out; on a GPU where the worker has one."""

    def __init__(
        self, config: EmuConfig, seed: int, init: str | None, vision_weights: str | None = None
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.side = config.vision.image_size
        self.tower = start_tower(config, seed, init, vision_weights).to(self.device)

    def __call__(self, images: Sequence[bytes]) -> np.ndarray:
        """Tokens `[images, P, V]` in float32."""
        with torch.inference_mode():
            return self.tower(pixels_of(images, self.side).to(self.device)).float().cpu().numpy()


def compute(options: PrecomputeFeatures) -> tuple[Manifest, int]:
    """The manifest that names the features, and the number of shards that were done now."""
    storage = Storage(job_path(options.data))
    read_manifest(storage)  # before an encoder of many gigabytes is made
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
    manifest = begin_features(storage, info, options.overwrite)
    missing = missing_shards(storage, manifest, info)
    rows = [{"shard": entry.name, "tar_sha256": entry.sha256} for entry in missing]
    make_encoder = partial(TowerEncoder, config, options.seed, init, vision_weights)
    arguments = (storage.root, info, make_encoder, options.batch_size)
    with tqdm(
        total=len(manifest.shards), initial=len(manifest.shards) - len(rows), unit="shard"
    ) as bar:
        for _ in _worked_on(rows, arguments, options.num_workers):
            bar.update()
    return finish_features(storage, info), len(rows)


def _worked_on(
    rows: list[dict[str, Any]], arguments: tuple[Any, ...], num_workers: int
) -> Iterator[dict[str, Any]]:
    """The rows, each when its shard is done; `arguments` are those of `ShardFeatures`."""
    if not rows:
        return
    if num_workers == 0:
        yield from map(ShardFeatures(*arguments), rows)
        return
    with ray_session():
        yield from _on_ray(rows, arguments, num_workers)


def _on_ray(
    rows: list[dict[str, Any]], arguments: tuple[Any, ...], num_workers: int
) -> Iterator[dict[str, Any]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # the bar of the job counts shards
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # a shard may take long
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    with DataContext.current(context):
        shards = ray.data.from_items(rows, override_num_blocks=len(rows))
        done = shards.map(
            ShardFeatures,  # pyright: ignore[reportArgumentType]  (a class: one worker an actor)
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(size=min(num_workers, len(rows))),
            num_gpus=1 if has_gpus else 0,
        )
        yield from done.iter_rows()


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


def main(arguments: list[str] | None = None) -> int:
    """Run the job; 0 if all features are there, 1 if not, 2 if an option or the dataset is wrong, 130 on Ctrl-C."""
    began = time.monotonic()
    try:
        options = tyro.cli(
            PrecomputeFeatures,
            args=arguments,
            description=inspect.getdoc(PrecomputeFeatures),
            prog="jobs/precompute_features.py",
        )
    except ValueError as error:
        return report_error(error, BAD_VALUE)
    start_logging()
    try:
        manifest, num_done = compute(options)
    except KeyboardInterrupt:
        return interrupted()
    except (FeatureError, SchemaError, FileNotFoundError, ValueError) as error:
        return report_error(error, BAD_VALUE)
    except OSError as error:
        return report_error(error, FAILED)
    print(summary(manifest, num_done, options, time.monotonic() - began))
    return COMPLETE


if __name__ == "__main__":
    sys.exit(main())
