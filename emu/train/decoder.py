"""The training of the visual decoder (paper section 2.3, stage "visual decoding"), in one process.

The model is frozen. Each picture's condition is what the model regresses, embedding after embedding, from
the picture's prompt; the U-Net learns to predict the noise under it, and a tenth of the conditions is
replaced by that of the empty prompt. Without a Stable Diffusion to start from, a small autoencoder is
trained first, on the same pictures.

This is the stage at small size: pictures and conditions are made once and held in memory, and a run that
is stopped begins anew. The result is written whole or not at all, in the layout of diffusers, with
`metrics.jsonl` beside it:

| field         | meaning                                                    |
|---------------|------------------------------------------------------------|
| stage         | `autoencoder` or `unet`                                    |
| step          | optimizer steps of the stage done, from 1                  |
| loss          | mean since the line before                                 |
| gradient_norm | of that step, before clipping                              |
| learning_rate | of that step                                               |

Shapes: N pictures, B batch, U distinct prompts, Q causal queries, D language width, C channels, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from emu.config import DecoderConfig, EmuConfig
from emu.decoders.autoencoder import autoencoder_loss, standardise_latents
from emu.decoders.stable_diffusion import SCHEDULER, UNET, VAE, StableDiffusionDecoder
from emu.generate.engine import Engine
from emu.recipes import OptimConfig
from emu.train.decoder_data import PromptedPictures, PromptRules, read_pictures, regress_conditions
from emu.train.run_folder import METRICS
from emu.train.step import TrainingError, rate_factor
from emu.weights.atomic_dir import check_free, new_directory
from emu.weights.store import load_model

log = logging.getLogger(__name__)

CONDITIONS, AUTOENCODER, UNET_STAGE = "conditions", "autoencoder", "unet"
Advance = Callable[[str, int, float | None], None]
"""Told the stage, by how much it went on, and its newest loss, for a progress bar."""
Loss = Callable[[Tensor], Tensor]
"""The loss of the pictures at some rows."""


@dataclass(frozen=True)
class DecoderTrainConfig:
    """Length and rates of the two stages; the defaults are for small sizes from scratch."""

    steps: int = 1000
    """Optimizer steps of the U-Net (paper: 15000)."""
    autoencoder_steps: int = 300
    """Optimizer steps of the autoencoder before; none are taken where a Stable Diffusion is given."""
    batch_size: int = 8
    """Pictures a step of the U-Net (paper: 1600 over all GPUs)."""
    autoencoder_batch_size: int = 4
    """Pictures a step of the autoencoder."""
    learning_rate: float = 3e-3
    """Peak learning rate of the U-Net. The paper's, for Stable Diffusion's weights, is 1e-4."""
    autoencoder_learning_rate: float = 2e-3
    """Peak learning rate of the autoencoder."""
    warmup_ratio: float = 0.1
    """Part of a stage's steps over which the rate rises; then it falls along a cosine to zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How much of the running means of gradient and squared gradient each step of AdamW keeps (the paper's)."""
    weight_decay: float = 0.01
    """Part of a weight that a step of AdamW at rate 1 takes away (the paper's)."""
    clip_norm: float = 1.0
    """Largest norm of the gradient (our choice; the paper does not say)."""
    drop_probability: float = 0.1
    """Part of the conditions replaced by that of the empty prompt, for guidance."""
    seed: int = 0
    """Of fresh weights, order of pictures, times and noise."""
    log_every: int = 10
    """Steps between lines of metrics."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "autoencoder_batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give at least 1")
        if self.autoencoder_steps < 0:
            raise ValueError(f"autoencoder_steps is {self.autoencoder_steps}, give 0 or more")
        for name in ("learning_rate", "autoencoder_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, give a number above 0")
        for name in ("warmup_ratio", "drop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give a number in 0..1")


@dataclass(frozen=True)
class DecoderPlan:
    """Which model's visual decoder to train, on what, and where to."""

    model: str
    data: str
    out: str
    stable_diffusion: str | None = None
    """A directory of Stable Diffusion v1.x in the layout of diffusers; null starts from the seed."""
    train: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)
    rules: PromptRules = field(default_factory=PromptRules)


@dataclass(frozen=True)
class DecoderSummary:
    """What a finished training did."""

    num_pictures: int
    num_prompts: int
    """Distinct ones."""
    left_out: dict[str, int]
    autoencoder_loss: float | None
    """Mean over the last tenth of the steps; null where no autoencoder was trained."""
    unet_loss: float
    out: str


def train_decoder(
    plan: DecoderPlan,
    device: torch.device | None = None,
    advance: Advance = lambda stage, number, loss: None,
) -> DecoderSummary:
    """Trains the visual decoder of a model and writes it to `plan.out`.

    Raises FileNotFoundError, ValueError or `DatasetError` for a model, options or data that do not fit,
    `TrainingError` for a loss that is not finite.
    """
    device = device or torch.device("cpu")
    folder = Path(plan.out)
    check_free(folder, is_decoder, overwrite=True)
    engine = Engine(*load_model(plan.model, device))
    engine.model.requires_grad_(False)
    decoder = start_decoder(plan, engine.config).to(device)
    pictures = read_pictures(plan.data, picture_side(engine.config, decoder), plan.rules)
    conditions_UQD, rows_N = regress_conditions(
        engine,
        pictures.prompts,
        plan.train.batch_size,
        lambda number: advance(CONDITIONS, number, None),
    )
    null_QD = engine.regress_image([""])[0].clone()
    with new_directory(folder, is_decoder, overwrite=True) as new:
        fitting = Fitting(plan.train, pictures, new / METRICS, device, advance)
        measured = fitting.autoencoder(decoder) if plan.stable_diffusion is None else None
        unet_loss = fitting.unet(decoder, conditions_UQD, rows_N, null_QD)
        decoder.save(new)
    return DecoderSummary(
        num_pictures=len(pictures),
        num_prompts=len(conditions_UQD),
        left_out=pictures.left_out,
        autoencoder_loss=measured,
        unet_loss=unet_loss,
        out=str(folder),
    )


def start_decoder(plan: DecoderPlan, config: EmuConfig) -> StableDiffusionDecoder:
    """The visual decoder before its training: fresh at the model's sizes, or Stable Diffusion's."""
    width, seed = config.language.hidden_size, plan.train.seed
    if plan.stable_diffusion is not None:
        return StableDiffusionDecoder.from_stable_diffusion(plan.stable_diffusion, width, seed)
    if config.decoder is None:
        raise ValueError(
            f"the model in {plan.model} has no sizes of a visual decoder in its configuration; train "
            "a recipe that has, or give a Stable Diffusion to start from"
        )
    return StableDiffusionDecoder.from_config(config.decoder, width, seed)


def picture_side(config: EmuConfig, decoder: StableDiffusionDecoder) -> int:
    """Pixels of the pictures: those that the model's configuration draws, by default Stable Diffusion's."""
    side = (config.decoder or DecoderConfig()).image_size
    if side % decoder.picture_factor:
        raise ValueError(
            f"the model draws pictures of {side} pixels, this visual decoder needs a multiple of "
            f"{decoder.picture_factor}"
        )
    return side


def is_decoder(folder: Path) -> bool:
    """Whether a directory is a visual decoder, which a training may replace."""
    return all((folder / part).is_dir() for part in (UNET, VAE, SCHEDULER))


class Fitting:
    """The two stages over the same pictures, writing the same metrics."""

    def __init__(
        self,
        config: DecoderTrainConfig,
        pictures: PromptedPictures,
        metrics: Path,
        device: torch.device,
        advance: Advance,
    ) -> None:
        self.config, self.pictures, self.metrics = config, pictures, metrics
        self.device, self.advance = device, advance

    def autoencoder(self, decoder: StableDiffusionDecoder) -> float:
        """Train the autoencoder, freeze it, standardise its latents; returns the last losses' mean."""
        config, generator = self.config, Generator().manual_seed(self.config.seed)
        vae = decoder.vae.requires_grad_(True).train()

        def loss(rows: Tensor) -> Tensor:
            return autoencoder_loss(vae, self._pixels(rows), generator)

        steps, rate = config.autoencoder_steps, config.autoencoder_learning_rate
        rows = drawn_rows(len(self.pictures), config.autoencoder_batch_size, generator)
        last = self._fit(AUTOENCODER, vae, loss, steps, rate, rows)
        vae.requires_grad_(False).eval()
        some = torch.randperm(len(self.pictures), generator=generator)[:256]
        standardise_latents(vae, self._pixels(some), generator)
        log.info("autoencoder loss=%.4f", last)
        return last

    def unet(
        self,
        decoder: StableDiffusionDecoder,
        conditions_UQD: Tensor,
        rows_N: Tensor,
        null_QD: Tensor,
    ) -> float:
        """Train the U-Net under the conditions; returns the mean of the last losses."""
        config, generator = self.config, Generator().manual_seed(self.config.seed + 1)

        def loss(rows: Tensor) -> Tensor:
            condition_BQD = conditions_UQD[rows_N[rows]].to(self.device)
            return decoder.loss(
                condition_BQD, self._pixels(rows), generator, null_QD, config.drop_probability
            )

        decoder.unet.train()
        rows = drawn_rows(len(self.pictures), config.batch_size, generator)
        last = self._fit(UNET_STAGE, decoder.unet, loss, config.steps, config.learning_rate, rows)
        decoder.unet.eval()
        return last

    def _pixels(self, rows: Tensor) -> Tensor:
        """The pictures at `rows` in [-1, 1]."""
        return self.pictures.pixels_NCHW[rows].to(self.device).float() / 127.5 - 1

    def _fit(
        self,
        stage: str,
        part: nn.Module,
        loss: Loss,
        steps: int,
        rate: float,
        rows: Iterator[Tensor],
    ) -> float:
        """Take the steps of a stage; returns the mean loss of the last tenth."""
        config = self.config
        optimizer = torch.optim.AdamW(
            part.parameters(), lr=rate, betas=config.betas, weight_decay=config.weight_decay
        )
        shape = OptimConfig(warmup_ratio=config.warmup_ratio)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps, shape))
        losses: list[float] = []
        for step in range(1, steps + 1):
            value = loss(next(rows))
            value.backward()
            norm = float(nn.utils.clip_grad_norm_(part.parameters(), config.clip_norm))
            losses.append(float(value.detach()))
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
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")


def drawn_rows(num_rows: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Batches of rows without end: every row once an epoch, in an order drawn anew each time."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(num_rows, generator=generator)])
        yield left[:batch_size]
        left = left[batch_size:]
