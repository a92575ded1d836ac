"""Adding features to a dataset: the stage that the options ask for, its run, and the words for a terminal."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, get_args

from jobs.cli import checked_options
from jobs.paths import encoder_path, job_path
from jobs.progress import say, say_importing
from schemas.features import FeatureInfo, Patches

if TYPE_CHECKING:
    from emu.train.feature_encoders import EncoderSpec, FeatureSizes
    from jobs.precompute_features import PrecomputeFeatures
    from pipelines.transforms.features import FeatureStage
    from schemas.manifest import Manifest

MILLION = 1_000_000


def add_features(options: PrecomputeFeatures) -> str:
    """Add the features that are missing; returns the summary."""
    from jobs.cluster import RunnerOnDemand
    from pipelines.core.folder import finished_manifest
    from pipelines.core.run import extend
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
    return summary(manifest, stage.info, num_done, options.data, time.monotonic() - began)


def feature_stage(options: PrecomputeFeatures) -> FeatureStage:
    """The stage, with the encoder that the options name."""
    from pipelines.core.pipeline import Resources
    from pipelines.transforms.features import FeatureStage

    spec, with_tokens = encoder_spec(options), options.patches != "none"
    with checked_options():
        info = info_of(spec, spec.sizes(), options.patches)
        encoder = spec.make(with_tokens)
    info = replace(info, weights_sha256=encoder.weights_sha256, preprocessing=encoder.preprocessing)
    needs = Resources(
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker or 0,
        concurrency=options.num_workers or None,
    )
    make = partial(spec.make, with_tokens, info.weights_sha256)
    return FeatureStage(
        info, make, options.batch_size, options.decode_threads, options.overwrite, needs
    )


def estimate(options: PrecomputeFeatures) -> str:
    """The disk that features take, by form and encoder; nothing is computed and no weights are read."""
    from emu.train.feature_encoders import EncoderSpec
    from pipelines.core.folder import finished_manifest
    from pipelines.core.storage import Storage

    num_images = finished_manifest(Storage(job_path(options.data))).num_images
    say_importing("torch")
    spec, full = encoder_spec(options), EncoderSpec(recipe="emu_14b")
    with checked_options():
        sizes = spec.sizes()
    others = {} if sizes == full.sizes() else {"EVA-CLIP g/14, the paper's": full.sizes()}
    lines = ["", f"{num_images:,} images in {options.data}; disk of their features", ""]
    for name, one in ({spec.name: sizes} | others).items():
        lines += [
            f"{name}: {one.num_tokens} tokens of width {one.width}, embedding {one.pooled_width}"
        ]
        lines += [_estimated(EncoderSpec(name), one, form, num_images) for form in _forms(one)]
        lines += [""]
    return "\n".join(lines[:-1])


def encoder_spec(options: PrecomputeFeatures) -> EncoderSpec:
    """The encoder that the options name."""
    from emu.train.feature_encoders import EncoderSpec

    return EncoderSpec(encoder_path(options.model), options.recipe, options.seed, options.precision)


def info_of(spec: EncoderSpec, sizes: FeatureSizes, patches: Patches) -> FeatureInfo:
    """The description of features in a form; hash and preprocessing are left empty.

    Raises ValueError where tokens are wanted of a network that has none.
    """
    if patches != "none" and not sizes.num_tokens:
        raise ValueError(
            f"patches is '{patches}', but '{spec.name}' is no vision transformer and has no patch tokens; give "
            "--patches none"
        )
    shape = (0, 0) if patches == "none" else (sizes.num_tokens, sizes.width)
    return FeatureInfo(spec.name, "", "", spec.precision, sizes.pooled_width, *shape, patches)


def summary(manifest: Manifest, info: FeatureInfo, num_done: int, data: str, seconds: float) -> str:
    """What was computed, in words for a terminal."""
    tokens = f", {info.num_tokens} tokens of width {info.width} each, {info.patches}"
    lines = [
        "",
        f"features   {manifest.num_images:,} images{tokens if info.num_tokens else ''}; embedding of width "
        f"{info.pooled_width}",
        f"encoder    {info.encoder} (weights {info.weights_sha256[:12]}…)",
        f"shards     {len(manifest.shards):,} in {data}/features, {num_done:,} of them now",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def _forms(sizes: FeatureSizes) -> tuple[Patches, ...]:
    return get_args(Patches) if sizes.num_tokens else ("none",)


def _estimated(spec: EncoderSpec, sizes: FeatureSizes, patches: Patches, num_images: int) -> str:
    from pipelines.publish.report import size

    row = info_of(spec, sizes, patches).row_bytes
    return f"  --patches {patches:<8} {size(num_images * row):>10}, {size(MILLION * row):>10} per million images"
