"""The interface of visual decoders: images from visual embeddings, the loss that trains them, their files.

Engine, training, server and conversion know a decoder only through this interface and its entry in
`emu.decoders.DECODERS`; a contract test runs over all entries.

Shapes: B batch, N images, Q embeddings of an image, D language width, C channels, H W pixels, Z latent channels,
h w latent positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Generator, Tensor, nn

from emu.config import DecoderConfig
from emu.weights.plan import Advance, ConversionWarnings
from emu.weights.writer import TensorSpec

Noise = Generator | list[Generator] | None
"""Where random numbers come from; a list has a generator for each image, so that no image depends on its batch."""


@dataclass(frozen=True)
class AutoencoderStage:
    """A stage of training before the main one: a network between pixels and latents, without conditions."""

    network: nn.Module
    loss: Callable[[Tensor, Noise], Tensor]
    """Of pixels `BCHW` in [-1, 1]."""
    finish: Callable[[Tensor, Generator], None]
    """Called once with some pixels after the last step, the network frozen."""


class Denoising(Protocol):
    """Images of one request on their way from noise; what else it holds is the decoder's own."""

    @property
    def latents_NZhw(self) -> Tensor:
        """As they are now."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether no noise is left."""
        ...


class VisualDecoder(Protocol):
    """Built from sizes or read from a folder; conditioned on embeddings of the language model."""

    kind: ClassVar[str]
    """Its name in the registry."""

    @property
    def condition_width(self) -> int:
        """Width of the embeddings that it reads."""
        ...

    @property
    def image_multiple(self) -> int:
        """What height and width of an image must be multiples of."""
        ...

    @classmethod
    def from_config(cls, config: DecoderConfig, condition_width: int, seed: int) -> Self:
        """A decoder with random weights; the same seed gives the same weights."""
        ...

    @classmethod
    def from_pretrained(cls, directory: str | Path, condition_width: int, seed: int) -> Self:
        """The start of a training from the weights in `directory`.

        What depends on the width of the condition is initialised from the seed. Raises FileNotFoundError for absent
        files, ValueError where weights do not fit.
        """
        ...

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The decoder that `save` wrote, in evaluation mode."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes everything that `load` needs, the files of its registry entry among them."""
        ...

    def to(self, device: torch.device) -> Self:
        """Moves it to a device."""
        ...

    def trained_network(self) -> tuple[str, nn.Module]:
        """The network that `loss` trains, and the name of this stage in the metrics."""
        ...

    def fit_conditions(self, conditions_UQD: Tensor) -> None:
        """Takes the statistics of the conditions of a training before its first step; may do nothing."""
        ...

    def autoencoder_stage(self) -> AutoencoderStage | None:
        """The stage before, for a decoder with random weights; None where there is none."""
        ...

    def loss(
        self,
        condition_BQD: Tensor,
        pixels_BCHW: Tensor,
        generator: Noise = None,
        null_condition_QD: Tensor | None = None,
        drop_probability: float = 0.1,
    ) -> Tensor:
        """The training loss, a scalar; pixels in [-1, 1].

        Each condition is replaced by the null condition with `drop_probability`, for guidance.
        """
        ...

    def begin(
        self,
        condition_NQD: Tensor,
        null_condition_QD: Tensor,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Generator | None = None,
        initial_latents: Tensor | None = None,
        scheduler: str | None = None,
    ) -> Denoising:
        """Images at noise, one per condition, to be made by `denoise` and `images`, perhaps beside others.

        Guidance is against the null condition, the embeddings regressed from the empty prompt (released pipeline); a
        scale of 1 leaves it out. `scheduler` is one of the registry entry; None is the first. Raises ValueError for a
        size, a number of steps or a scheduler that the decoder does not support.
        """
        ...

    def denoise(self, batch: Sequence[Any]) -> None:
        """One step of each of what `begin` gave, in one forward, in place; all have the same height and width."""
        ...

    def images(self, latents: Tensor) -> Tensor:
        """Images `NHWC` in uint8 of latents without noise."""
        ...


def decode(decoder: VisualDecoder, *arguments: Any, **options: Any) -> Tensor:
    """Images `NHWC` in uint8, made alone; the arguments are those of `VisualDecoder.begin`, which raises for them."""
    denoising = decoder.begin(*arguments, **options)
    while not denoising.is_done:
        decoder.denoise([denoising])
    return decoder.images(denoising.latents_NZhw)


class DecoderConversion(Protocol):
    """A planned conversion of a decoder's files: everything is known before the first byte is written."""

    @property
    def specs(self) -> Iterator[TensorSpec]:
        """The tensors that will be written."""
        ...

    @property
    def dropped(self) -> list[str]:
        """Names of tensors in the files that are not used."""
        ...

    @property
    def folders(self) -> list[str]:
        """The folders of its networks."""
        ...

    @property
    def config(self) -> DecoderConfig | None:
        """The sizes, or None where `DecoderConfig` cannot describe them."""
        ...

    def write(
        self, target: Path, shard_bytes: int, warnings: ConversionWarnings, advance: Advance
    ) -> None:
        """Writes all files into `target`."""
        ...


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The network of class `kind` in a folder in the layout of diffusers or transformers.

    Their loaders only warn about missing weights and leave them random. Here that is a ValueError
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


def check_conditions(
    condition_BQD: Tensor, null_condition_QD: Tensor | None, condition_width: int
) -> None:
    """Raises ValueError for conditions of another width, or a null condition of another shape."""
    shape = tuple(condition_BQD.shape)
    if len(shape) != 3 or shape[2] != condition_width:
        raise ValueError(
            f"condition_BQD has shape {shape}, the decoder reads (B, Q, {condition_width})"
        )
    if null_condition_QD is not None and tuple(null_condition_QD.shape) != shape[1:]:
        null = tuple(null_condition_QD.shape)
        raise ValueError(f"null_condition_QD has shape {null}, needed is {shape[1:]}")
