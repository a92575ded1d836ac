"""What a visual decoder is: pictures from visual embeddings, and the loss that trains it.

Shapes: B batch, Q embeddings of an image, D language width, C channels, H W pixels.

One network of a decoder's directory, with every weight from its files and none left as it was drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

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


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The network of class `kind` in a folder in the layout of diffusers or transformers.

    Their loaders only warn where names are absent, and go on with random weights. Here that is a ValueError
    that names them; FileNotFoundError where there are no files.
    """
    try:
        network, found = kind.from_pretrained(
            folder, local_files_only=True, torch_dtype=dtype, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"no {kind.__name__} in {folder}: {str(error).splitlines()[0]}"
        ) from error
    problems = [
        f"{what.removesuffix('_keys')} {key}"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        for key in sorted(map(str, found.get(what) or []))
    ]
    if problems:
        raise ValueError(f"the {kind.__name__} in {folder} does not fit: " + "; ".join(problems))
    return network
