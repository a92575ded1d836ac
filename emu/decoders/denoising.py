"""Images on their way from noise, several in one forward of the U-Net at steps of their own.

Every image has a scheduler of its own (diffusers' keep state), so images of one size share a forward whatever their
steps, schedulers and numbers of steps. Guidance doubles the rows of an image in the same forward.

Shapes: N images, R rows of a forward, Q embeddings of an image, D language width, Z latent channels, h w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from emu.decoders.diffusion import predict


@dataclass
class Denoising:
    """Some images of one request (usually one) that are denoised together."""

    steps: Any
    """A scheduler of diffusers, set to its steps."""
    latents_NZhw: Tensor
    conditions_RQD: Tensor
    """With guidance, the null conditions before the own ones."""
    guidance_scale: float
    num_done: int = 0

    @classmethod
    def begin(
        cls,
        steps: Any,
        noise_NZhw: Tensor,
        condition_NQD: Tensor,
        null_condition_QD: Tensor,
        guidance_scale: float,
    ) -> Denoising:
        """From noise of unit variance; a guidance scale of 1 leaves the null condition out."""
        conditions = condition_NQD
        if guidance_scale != 1:
            null_NQD = null_condition_QD.to(condition_NQD).expand_as(condition_NQD)
            conditions = torch.cat([null_NQD, condition_NQD])
        latents = noise_NZhw * steps.init_noise_sigma
        return cls(steps, latents, conditions.to(noise_NZhw.dtype), guidance_scale)

    @property
    def is_done(self) -> bool:
        """Whether no noise is left."""
        return self.num_done == len(self.steps.timesteps)

    @property
    def time(self) -> Tensor:
        """The time of the next step, on the device of the latents."""
        return self.steps.timesteps[self.num_done].to(self.latents_NZhw.device)

    def inputs(self) -> Tensor:
        """What the U-Net reads, `RZhw`."""
        latents = self.latents_NZhw
        doubled = torch.cat([latents] * 2) if self.guidance_scale != 1 else latents
        return self.steps.scale_model_input(doubled, self.time)

    def take(self, predicted_RZhw: Tensor) -> None:
        """Makes a step by what the U-Net predicted."""
        if self.guidance_scale != 1:
            without, with_it = predicted_RZhw.chunk(2)
            predicted_RZhw = without + self.guidance_scale * (with_it - without)
        stepped = self.steps.step(predicted_RZhw, self.time, self.latents_NZhw)
        self.latents_NZhw = stepped.prev_sample
        self.num_done += 1


@torch.no_grad()
def denoise(unet: UNet2DConditionModel, batch: Sequence[Denoising]) -> None:
    """One step of each, in one forward; all have latents of the same size."""
    inputs = [each.inputs() for each in batch]
    times_R = torch.cat(
        [each.time.expand(len(rows)) for each, rows in zip(batch, inputs, strict=True)]
    )
    conditions_RQD = torch.cat([each.conditions_RQD for each in batch])
    predicted = predict(unet, torch.cat(inputs), times_R, conditions_RQD)
    parts = predicted.split([len(rows) for rows in inputs])
    for each, part in zip(batch, parts, strict=True):
        each.take(part)
