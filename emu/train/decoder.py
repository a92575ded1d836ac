"""Training of the visual decoder (paper section 2.3, stage "visual decoding"), in one process or on several ranks.

The model is frozen. The condition of each image is what the model regresses, embedding by embedding, from the
image's prompt; the decoder learns to denoise under it, and a tenth of the conditions is replaced by that of the
empty prompt. Without pretrained weights, an autoencoder is trained first on the same images, where the kind of
decoder has one.

This is the stage at small size: images and conditions are computed once and held in memory, and a run that is
stopped starts again from the beginning. The result is written atomically, with `metrics.jsonl` beside it:

| field         | meaning                                                       |
|---------------|---------------------------------------------------------------|
| stage         | `autoencoder`, or the trained network (`unet`)                |
| step          | optimizer steps of the stage done, from 1                     |
| loss          | mean since the previous line                                  |
| gradient_norm | of that step, before clipping                                 |
| learning_rate | of that step                                                  |

Shapes: N images, B batch, U distinct prompts, Q causal queries, D language width, C channels, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from emu.config import DecoderConfig, EmuConfig
from emu.data.dataset import derived_seed
from emu.decoders import decoder_class, is_decoder, kind_of
from emu.decoders.base import AutoencoderStage, VisualDecoder
from emu.generate.engine import Engine
from emu.recipes import DecoderTrainConfig, OptimConfig, PromptRules
from emu.train.decoder_data import PromptedImages, read_images, regress_conditions
from emu.train.optim import rate_factor
from emu.train.run_folder import METRICS
from emu.train.step import Ranks, TrainingError
from emu.weights.layout import check_free, new_directory
from emu.weights.store import load_model

log = logging.getLogger(__name__)

CONDITIONS, AUTOENCODER = "conditions", "autoencoder"
NUM_FOR_STATISTICS = 256  # images whose latents are standardised after the autoencoder's stage
Advance = Callable[[str, int, float | None], None]
"""Called with the stage, the number of units done since the last call, and the newest loss, for a progress bar."""
Loss = Callable[[Tensor], Tensor]
"""The loss of the images at some rows."""


@dataclass(frozen=True)
class DecoderPlan:
    """Which model's visual decoder to train, on what, and where to write it."""

    model: str
    data: str
    out: str
    pretrained: str | None = None
    """A folder of pretrained weights, such as Stable Diffusion v1.x in diffusers' layout; None: random ones."""
    train: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)
    rules: PromptRules = field(default_factory=PromptRules)


@dataclass(frozen=True)
class DecoderSummary:
    """What a finished training did."""

    num_images: int
    num_prompts: int
    """Distinct ones."""
    left_out: dict[str, int]
    autoencoder_loss: float | None
    """Mean over the last tenth of the steps; None where no autoencoder was trained."""
    loss: float
    """The same of the decoder."""
    out: str


def train_decoder(
    plan: DecoderPlan,
    device: torch.device | None = None,
    advance: Advance = lambda stage, number, loss: None,
    ranks: Ranks | None = None,
) -> DecoderSummary:
    """Trains the visual decoder of a model and writes it to `plan.out`.

    Several ranks compute all conditions each, and share the batches; the first one writes.

    Raises FileNotFoundError, ValueError or `DatasetError` for a model, options or data that do not fit,
    `TrainingError` for a loss that is not finite.
    """
    device, ranks = device or torch.device("cpu"), ranks or Ranks()
    folder = Path(plan.out)
    check_free(folder, is_decoder, overwrite=True)
    engine = Engine(*load_model(plan.model, device))
    engine.model.requires_grad_(False)
    decoder = initial_decoder(plan, engine.config).to(device)
    images = read_images(plan.data, image_side(engine.config, decoder), plan.rules)
    conditions_UQD, rows_N = regress_conditions(
        engine,
        images.prompts,
        plan.train.batch_size,
        lambda number: advance(CONDITIONS, number, None),
    )
    null_QD = engine.regress_image([""])[0].clone()
    decoder.fit_conditions(conditions_UQD)
    stage = decoder.autoencoder_stage() if plan.pretrained is None else None
    with ranks.on_first(lambda: new_directory(folder, is_decoder, overwrite=True)) as new:
        metrics = None if new is None else new / METRICS
        trainer = StageTrainer(plan.train, images, metrics, device, advance, ranks)
        autoencoder_loss = None if stage is None else trainer.train_autoencoder(stage)
        loss = trainer.train_decoder(decoder, conditions_UQD, rows_N, null_QD)
        if new is not None:
            decoder.save(new)
    return DecoderSummary(
        num_images=len(images),
        num_prompts=len(conditions_UQD),
        left_out=images.left_out,
        autoencoder_loss=autoencoder_loss,
        loss=loss,
        out=str(folder),
    )


def initial_decoder(plan: DecoderPlan, config: EmuConfig) -> VisualDecoder:
    """The visual decoder before its training: random weights at the model's sizes, or pretrained ones."""
    width, seed = config.language.hidden_size, plan.train.seed
    changes = {
        name: value
        for name in ("prediction", "snr_gamma", "noise_shift", "contrast_weight")
        if (value := getattr(plan.train, name)) is not None
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


class StageTrainer:
    """Trains the stages on the same images and writes their metrics into one file."""

    def __init__(
        self,
        config: DecoderTrainConfig,
        images: PromptedImages,
        metrics: Path | None,
        device: torch.device,
        advance: Advance,
        ranks: Ranks,
    ) -> None:
        self.config, self.images, self.metrics = config, images, metrics
        self.device, self.advance, self.ranks = device, advance, ranks

    def train_autoencoder(self, stage: AutoencoderStage) -> float:
        """Trains the autoencoder, freezes and finishes it; returns the mean of the last losses."""
        config, generator = self.config, Generator().manual_seed(self.config.seed)
        noise = self._noise(config.seed)
        network = stage.network.requires_grad_(True).train()

        def loss(rows: Tensor) -> Tensor:
            return stage.loss(self._pixels(rows), noise)

        steps, rate = config.autoencoder_steps, config.autoencoder_learning_rate
        rows = shuffled_rows(len(self.images), config.autoencoder_batch_size, generator)
        last = self._train(AUTOENCODER, network, loss, steps, rate, rows)
        network.requires_grad_(False).eval()
        some = torch.randperm(len(self.images), generator=generator)[:NUM_FOR_STATISTICS]
        stage.finish(self._pixels(some), generator)
        log.info("autoencoder loss=%.4f", last)
        return last

    def train_decoder(
        self,
        decoder: VisualDecoder,
        conditions_UQD: Tensor,
        rows_N: Tensor,
        null_QD: Tensor,
    ) -> float:
        """Trains the decoder under the conditions; returns the mean of the last losses."""
        config, generator = self.config, Generator().manual_seed(self.config.seed + 1)
        noise = self._noise(config.seed + 1)
        name, network = decoder.trained_network()

        def loss(rows: Tensor) -> Tensor:
            condition_BQD = conditions_UQD[rows_N[rows]].to(self.device)
            return decoder.loss(
                condition_BQD, self._pixels(rows), noise, null_QD, config.drop_probability
            )

        network.train()
        rows = shuffled_rows(len(self.images), config.batch_size, generator)
        last = self._train(name, network, loss, config.steps, config.learning_rate, rows)
        network.eval()
        return last

    def _noise(self, seed: int) -> Generator:
        """Noise and times of this rank, apart from the order of the images, which is that of all ranks."""
        return Generator().manual_seed(derived_seed("decoder", seed, self.ranks.share.rank))

    def _pixels(self, rows: Tensor) -> Tensor:
        """The images at `rows` in [-1, 1]."""
        return self.images.pixels_NCHW[rows].to(self.device).float() / 127.5 - 1

    def _train(
        self,
        stage: str,
        network: nn.Module,
        loss: Loss,
        steps: int,
        rate: float,
        rows: Iterator[Tensor],
    ) -> float:
        """Takes the steps of a stage; returns the mean loss of the last tenth."""
        config = self.config
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        shape = OptimConfig(warmup_ratio=config.warmup_ratio)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps, shape))
        weights = list(network.parameters())
        losses: list[float] = []
        for step in range(1, steps + 1):
            batch = next(rows)
            size, rank = self.ranks.share_of(len(batch)), self.ranks.share.rank
            value = loss(batch[rank * size : (rank + 1) * size])
            value.backward()
            self.ranks.average_gradients(weights)
            norm = float(nn.utils.clip_grad_norm_(weights, config.clip_norm))
            losses += self.ranks.mean([float(value.detach())])
            self._check(stage, step, losses[-1], norm)
            row = {"gradient_norm": norm, "learning_rate": schedule.get_last_lr()[0]}
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            self._record(stage, step, steps, losses, row)
        tenth = losses[-max(1, steps // 10) :]
        return sum(tenth) / len(tenth) if tenth else float("nan")

    def _check(self, stage: str, step: int, value: float, norm: float) -> None:
        if not (abs(value) < float("inf") and norm < float("inf")):
            raise TrainingError(
                f"{stage} step {step}: loss {value}, gradient norm {norm}; nothing was written: "
                "lower the learning rate"
            )

    def _record(
        self, stage: str, step: int, steps: int, losses: list[float], row: dict[str, Any]
    ) -> None:
        self.advance(stage, 1, losses[-1])
        every = self.config.log_every
        if step % every and step != steps:
            return
        since = losses[-(step % every or every) :]
        line = {"stage": stage, "step": step, "loss": sum(since) / len(since), **row}
        if self.metrics is not None:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")


def shuffled_rows(num_rows: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Endless batches of rows: each row once per epoch, in a new random order each time."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(num_rows, generator=generator)])
        yield left[:batch_size]
        left = left[batch_size:]
