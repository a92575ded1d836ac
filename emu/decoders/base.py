"""What a visual decoder is: pictures from visual embeddings, and the loss that trains it.

Shapes: B batch, Q embeddings of an image, D language width, C channels, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Generator, Tensor

from emu.config import DecoderConfig


class VisualDecoder(Protocol):
    """Built from sizes or read from a directory; conditioned on embeddings of the language model."""

    @classmethod
    def from_config(cls, config: DecoderConfig, condition_width: int, seed: int) -> Self:
        """A decoder with fresh weights; the same seed gives the same weights."""
        ...

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The decoder that `save` wrote."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes everything that `load` needs."""
        ...

    def loss(
        self,
        condition_BQD: Tensor,
        pixels_BCHW: Tensor,
        generator: Generator | None = None,
        null_condition_QD: Tensor | None = None,
        drop_probability: float = 0.1,
    ) -> Tensor:
        """The training loss, a scalar; pixels in [-1, 1].

        Each condition is replaced by the null condition with `drop_probability`, for guidance.
        """
        ...

    def decode(
        self,
        condition_BQD: Tensor,
        null_condition_QD: Tensor,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Generator | None = None,
        initial_latents: Tensor | None = None,
        scheduler: str = "pndm",
    ) -> Tensor:
        """Pictures `BHWC` in uint8, drawn from noise under guidance against the null condition."""
        ...
