"""Training of the visual decoder (paper section 2.3, stage "visual decoding"), in the loop that all stages share.

The model is frozen. The condition of each image is what the model regresses from the image's prompt
(`emu/train/conditions.py`); the decoder learns to denoise under it, and a tenth of the conditions is replaced by that
of the empty prompt. Without pretrained weights, an autoencoder is trained first on the same images, where the kind of
decoder has one, as a run of its own in RUN/autoencoder.

Noise, times and dropped conditions of an image follow from the seed and its place in the stream, so they depend on no
rank and no batch. In the log, `visual_loss` is the loss of the decoder.

Shapes: B batch, Q causal queries, D language width, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from emu.config import DecoderConfig, EmuConfig
from emu.data.batches import Layout
from emu.data.dataset import Dataset, DatasetError, ShardReader
from emu.data.mixture import Corpus, Mixture, Source
from emu.decoder_recipe import DecoderTrainConfig, PromptRules
from emu.decoders import decoder_class, is_decoder, kind_of
from emu.decoders.base import AutoencoderStage, VisualDecoder
from emu.generate.engine import Engine
from emu.recipes import TrainConfig
from emu.train.conditions import (
    Conditions,
    null_condition,
    prepare,
    prompted_images,
    some_conditions,
)
from emu.train.decoder_data import DecoderLosses, PromptedStream
from emu.train.decoder_plan import image_cost
from emu.train.loop import finished_summary, train
from emu.train.optim import network_optimizer, rate_factor, staged_factor
from emu.train.plan import Resume, Stage
from emu.train.run_folder import METRICS
from emu.train.step import Ranks
from emu.weights.layout import check_free, load_config, new_directory, weight_files
from emu.weights.store import load_model

AUTOENCODER, NETWORK = "autoencoder", "network.safetensors"
NUM_FOR_STATISTICS = 256  # images whose latents are standardised after the autoencoder's training
PREPARED_AT_ONCE = 64  # prompts whose conditions are regressed together


@dataclass(frozen=True)
class DecoderPlan:
    """Which model's visual decoder to train, on what, and the folder of the run; sent to workers."""

    model: str
    data: str | tuple[Corpus, ...]
    """The address of a dataset, or the corpora of a mixture."""
    out: str
    pretrained: str | None = None
    """A folder of pretrained weights, such as Stable Diffusion v1.x in diffusers' layout; None: random ones."""
    options: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)
    rules: PromptRules = field(default_factory=PromptRules)
    resume: Resume = "auto"
    checkpoints: str | None = None
    """Folder or fsspec address of the checkpoints; None: OUT/checkpoints."""
    num_ranks: int | None = None
    """The ranks that train; batch sizes do not depend on them."""

    @property
    def train(self) -> TrainConfig:
        """What the training loop needs to know."""
        options = self.options
        return options.run(options.steps, options.batch_size, options.learning_rate)

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora of the run, one or several."""
        return (Corpus(self.data),) if isinstance(self.data, str) else self.data

    def configuration(self) -> dict[str, Any]:
        """The options that determine the weights of the run, as JSON values."""
        free = ("checkpoint_every", "keep_checkpoints", "log_every", "num_threads")
        free += ("max_bad_samples", "max_skipped_steps", "micro_batch_size")
        free += ("validate_every", "validation_samples", "peak_tflops")
        options = dataclasses.asdict(self.options)
        if self.options.condition_precision == "float32":  # as in the runs of earlier releases
            del options["condition_precision"]
        described = {
            "stage": "decoder",
            "model": model_digest(self.model),
            "pretrained": self.pretrained,
            "train": {name: value for name, value in options.items() if name not in free},
            "rules": dataclasses.asdict(self.rules),
        }
        if len(self.corpora) > 1:
            described["mixture"] = [[c.name or "", c.weight] for c in self.corpora]
        return json.loads(json.dumps(described))

    def check(self) -> None:
        """Raise for a model, weights or datasets that do not fit; of each dataset up to the first image is read."""
        config = load_config(self.model)
        decoder = initial_decoder(self, config)
        image_side(config, decoder)
        for corpus in self.corpora:
            _check_images(corpus.address, self.rules)

    def open(self, ranks: Ranks, device: torch.device) -> Stage:
        """The decoder, when conditions and autoencoder are there, its optimizer and its images."""
        inputs = DecoderInputs.of(self, ranks, device)
        decoder = initial_decoder(self, inputs.config)
        decoder.fit_conditions(some_conditions(list(inputs.conditions.values())))
        autoencoder = decoder.autoencoder_stage() if self.pretrained is None else None
        if autoencoder is not None and self.options.autoencoder_steps:
            before = AutoencoderPlan(self)
            if finished_summary(before) is None:
                train(before, ranks, device)
            autoencoder.network.load_state_dict(load_file(before.result))
            pixels = inputs.stream(self, decoder, before.train, Ranks()).first_pixels(
                NUM_FOR_STATISTICS
            )
            autoencoder.finish(pixels, Generator().manual_seed(self.options.seed))
        decoder = decoder.to(device)
        _, network = decoder.trained_network()
        losses = DecoderLosses(
            network,
            decoder.loss,
            inputs.null_QD,
            self.options.drop_probability,
            self.options.precision,
        )
        return self._stage(
            self.train, inputs.stream(self, decoder, self.train, ranks), losses, decoder
        )

    def _stage(
        self,
        config: TrainConfig,
        stream: PromptedStream,
        losses: DecoderLosses,
        decoder: VisualDecoder,
    ) -> Stage:
        optimizer = network_optimizer(losses.network, config.optim)
        is_staged = self.options.schedule == "staged"

        def set_rates(step: int) -> float:
            factor = (staged_factor if is_staged else rate_factor)(step, config.steps, config.optim)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            return factor

        def publish(folder: Path) -> None:
            losses.network.eval()
            with new_directory(folder, lambda folder: True, overwrite=True) as new:
                decoder.save(new)

        cost = image_cost(losses, stream.side)
        return Stage(losses.network, optimizer, stream, losses, set_rates, cost, publish)


@dataclass(frozen=True)
class AutoencoderPlan:
    """The training of the autoencoder before that of a decoder."""

    decoder: DecoderPlan
    resume: Resume = "auto"
    checkpoints: str | None = None

    @property
    def out(self) -> str:
        """The folder of the run."""
        return f"{self.decoder.out}/{AUTOENCODER}"

    @property
    def result(self) -> Path:
        """The file of the trained weights."""
        return Path(self.out) / "model" / NETWORK

    @property
    def train(self) -> TrainConfig:
        """What the training loop needs to know."""
        options = self.decoder.options
        rate = options.autoencoder_learning_rate
        return options.run(options.autoencoder_steps, options.autoencoder_batch_size, rate)

    def configuration(self) -> dict[str, Any]:
        """The options that determine the weights of the run, as JSON values."""
        return self.decoder.configuration() | {"stage": AUTOENCODER}

    def check(self) -> None:
        """Nothing: what the decoder's plan checks."""

    def open(self, ranks: Ranks, device: torch.device) -> Stage:
        """The autoencoder, its optimizer and its images."""
        inputs = DecoderInputs.of(self.decoder, ranks, device)
        decoder = initial_decoder(self.decoder, inputs.config).to(device)
        found = decoder.autoencoder_stage()
        assert found is not None
        network, config = found.network.requires_grad_(True).train(), self.train
        losses = DecoderLosses(
            network, _without_condition(found), inputs.null_QD, 0.0, config.precision
        )
        optimizer = network_optimizer(network, config.optim)

        def set_rates(step: int) -> float:
            factor = rate_factor(step, config.steps, config.optim)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            return factor

        def publish(folder: Path) -> None:
            with new_directory(folder, lambda folder: True, overwrite=True) as new:
                weights = {name: w.contiguous() for name, w in network.state_dict().items()}
                save_file(weights, new / NETWORK)

        stream = inputs.stream(self.decoder, decoder, config, ranks)
        cost = image_cost(losses, stream.side)
        return Stage(network, optimizer, stream, losses, set_rates, cost, publish)


@dataclass(frozen=True)
class DecoderInputs:
    """What the trainings of a decoder read: images that have prompts, with their conditions."""

    config: EmuConfig
    conditions: dict[str, Conditions]
    addresses: dict[str, str]
    weights: dict[str, float]
    null_QD: Tensor

    @staticmethod
    def of(plan: DecoderPlan, ranks: Ranks, device: torch.device) -> DecoderInputs:
        """The inputs of a plan; conditions that are not in its folder are computed, on all ranks."""
        frozen = _Frozen(plan.model, device)
        out, found = Path(plan.out), dict[str, Conditions]()
        addresses, weights = dict[str, str](), dict[str, float]()
        for corpus in plan.corpora:
            dataset = Dataset(corpus.address)
            name = corpus.name or dataset.manifest.corpus
            found[name] = prepare(
                out,
                name,
                dataset,
                plan.rules,
                plan.options,
                lambda: frozen.engine,
                PREPARED_AT_ONCE,
                ranks,
            )
            addresses[name], weights[name] = corpus.address, corpus.weight
        null_QD = null_condition(out, lambda: frozen.engine, ranks)
        return DecoderInputs(load_config(plan.model), found, addresses, weights, null_QD)

    def stream(
        self, plan: DecoderPlan, decoder: VisualDecoder, config: TrainConfig, ranks: Ranks
    ) -> PromptedStream:
        """The images of a training."""
        sources = [
            Source(
                name,
                self.weights[name],
                ShardReader(self.addresses[name], config.seed, rows=found.rows),
                config.batch_size,
                held_out=config.held_out,
            )
            for name, found in self.conditions.items()
        ]
        size = plan.options.micro_batch_size or config.batch_size
        layout = Layout({source.name: size for source in sources})
        side = image_side(self.config, decoder)
        mixture, share = Mixture(sources), ranks.share
        return PromptedStream(
            mixture, self.conditions, side, config.seed, layout, share, config.num_threads
        )


@dataclass
class _Frozen:
    """The frozen model, loaded when it is first needed."""

    model: str
    device: torch.device

    @cached_property
    def engine(self) -> Engine:
        engine = Engine(*load_model(self.model, self.device))
        engine.model.requires_grad_(False)
        return engine


def initial_decoder(plan: DecoderPlan, config: EmuConfig) -> VisualDecoder:
    """The visual decoder before its training: random weights at the model's sizes, or pretrained ones."""
    width, seed = config.language.hidden_size, plan.options.seed
    changes = {
        name: value
        for name in ("prediction", "snr_gamma", "noise_shift", "contrast_weight")
        if (value := getattr(plan.options, name)) is not None
    }
    if plan.pretrained is not None:
        if changes:
            raise ValueError(
                f"train.{next(iter(changes))} is {next(iter(changes.values()))!r}, but pretrained weights keep the "
                "prediction and the noise that they were trained with; leave it out, or train from scratch"
            )
        kind = kind_of(Path(plan.pretrained))
        return decoder_class(kind).from_pretrained(plan.pretrained, width, seed)
    if config.decoder is None:
        raise ValueError(
            f"the model in {plan.model} has no sizes of a visual decoder in its configuration; train "
            "a recipe that has them, or give pretrained weights to start from"
        )
    sizes = replace(config.decoder, **changes)
    return decoder_class(sizes.kind).from_config(sizes, width, seed)


def image_side(config: EmuConfig, decoder: VisualDecoder) -> int:
    """Pixels along a side of the images: of the model's configuration, by default Stable Diffusion's."""
    side = (config.decoder or DecoderConfig()).image_size
    if side % decoder.image_multiple:
        raise ValueError(
            f"the model generates images of {side} pixels, this visual decoder needs a multiple of "
            f"{decoder.image_multiple}"
        )
    return side


def model_digest(model: str) -> str:
    """A hash of the weights of a model folder: conditions and decoder belong to them."""
    files = weight_files(Path(model))
    return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


def publish_decoder(out: str | Path, target: str | Path) -> Path:
    """Copy the decoder of a run to where a model finds it, atomically, with the metrics of the run beside it.

    Raises FileExistsError where something else is there.
    """
    import shutil

    source, folder = Path(out) / "model", Path(target)
    with new_directory(folder, is_decoder, overwrite=True) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        shutil.copyfile(Path(out) / METRICS, new / METRICS)
    return folder


def check_target(target: str | Path) -> None:
    """Raise FileExistsError if a visual decoder cannot be written there."""
    check_free(Path(target), is_decoder, overwrite=True)


def _check_images(address: str, rules: PromptRules) -> None:
    """Raise `DatasetError` for a dataset without an image that is trained on."""
    from collections import Counter

    dataset, left_out = Dataset(address), Counter[str]()
    for number, entry in enumerate(dataset.entries):
        for row in range(entry.num_samples):
            if any(prompted_images(dataset.sample(number, row), row, rules, left_out)):
                return
    raise DatasetError(
        f"{address}: no image has a prompt to learn from; left out: {dict(left_out)}"
    )


def _without_condition(stage: AutoencoderStage) -> Callable[..., Tensor]:
    return lambda condition_BQD, pixels_BCHW, generator, *_: stage.loss(pixels_BCHW, generator)


@lru_cache(8)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        with Path(name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
