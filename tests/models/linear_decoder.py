"""A second visual decoder in one file: a coarse grid of colours, linear in the condition and in the noise."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from emu.config import DecoderConfig
from emu.decoders import DecoderEntry, read_multiple_of_file, write_decoder_file
from emu.decoders.base import AutoencoderStage, Noise
from emu.decoders.diffusion import drop_conditions

KIND = "linear"
GRID = 8  # pixels along a side of a cell
SCHEDULERS = ("straight", "halved")
SIZES, WEIGHTS = "sizes.json", "weights.safetensors"
MAX_STEPS = 10
ENTRY = DecoderEntry(
    implementation=f"{__name__}:LinearDecoder",
    schedulers=SCHEDULERS,
    files=(SIZES, WEIGHTS),
    read_image_multiple=read_multiple_of_file,
)


@dataclass
class Fading:
    """Images whose noise stays; the steps are counted."""

    latents_NZhw: Tensor
    steps_left: int

    @property
    def is_done(self) -> bool:
        return not self.steps_left


class LinearDecoder(nn.Module):
    """Colours of cells from the mean of the condition; more noise stays with the scheduler `halved`."""

    kind: ClassVar[str] = KIND

    def __init__(self, num_cells: int, condition_width: int) -> None:
        super().__init__()
        self.num_cells = num_cells  # along a side
        self.colours = nn.Linear(condition_width, 3 * num_cells**2)

    @property
    def condition_width(self) -> int:
        return self.colours.in_features

    @property
    def image_multiple(self) -> int:
        return GRID

    @classmethod
    def from_config(cls, config: DecoderConfig, condition_width: int, seed: int) -> Self:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config.image_size // GRID, condition_width)

    @classmethod
    def from_pretrained(cls, directory: str | Path, condition_width: int, seed: int) -> Self:
        source = cls.load(directory)
        config = DecoderConfig(image_size=source.num_cells * GRID)
        decoder = cls.from_config(config, condition_width, seed)
        decoder.colours.bias.data.copy_(source.colours.bias.data)
        return decoder

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        if not (Path(directory) / SIZES).is_file():
            raise FileNotFoundError(f"no decoder at {directory}: {SIZES} is absent")
        decoder = cls(**json.loads((Path(directory) / SIZES).read_text()))
        decoder.load_state_dict(load_file(Path(directory) / WEIGHTS))
        return decoder.to(device, dtype).eval()

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(exist_ok=True)
        sizes = {"num_cells": self.num_cells, "condition_width": self.condition_width}
        (directory / SIZES).write_text(json.dumps(sizes))
        save_file(self.state_dict(), directory / WEIGHTS)
        write_decoder_file(directory, KIND, GRID)

    def trained_network(self) -> tuple[str, nn.Module]:
        return "colours", self.colours

    def fit_conditions(self, conditions_UQD: Tensor) -> None:
        """Nothing."""

    def autoencoder_stage(self) -> AutoencoderStage | None:
        return None

    def loss(
        self,
        condition_BQD: Tensor,
        pixels_BCHW: Tensor,
        generator: Noise = None,
        null_condition_QD: Tensor | None = None,
        drop_probability: float = 0.1,
    ) -> Tensor:
        self._check(condition_BQD, null_condition_QD)
        if null_condition_QD is not None:
            condition_BQD = drop_conditions(
                condition_BQD, null_condition_QD, drop_probability, generator
            )
        cells = functional.adaptive_avg_pool2d(pixels_BCHW, self.num_cells)
        return functional.mse_loss(self._cells(condition_BQD), cells)

    @torch.no_grad()
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
    ) -> Fading:
        self._check(condition_NQD, null_condition_QD)
        if scheduler not in (None, *SCHEDULERS):
            raise ValueError(f"no scheduler {scheduler!r}; there are {sorted(SCHEDULERS)}")
        if min(height, width) < GRID or height % GRID or width % GRID:
            raise ValueError(f"an image of {height} x {width}: give multiples of {GRID}")
        if not 1 <= num_inference_steps <= MAX_STEPS:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, give 1 to {MAX_STEPS}")
        null = self._cells(null_condition_QD[None])
        cells = null + guidance_scale * (self._cells(condition_NQD) - null)
        noise: Any = initial_latents
        if noise is None:
            noise = torch.randn(cells.shape, generator=generator)
        part = 1 / num_inference_steps / (1 if scheduler == "halved" else 2)
        noisy = functional.interpolate(cells + part * noise.to(cells), size=(height, width))
        return Fading(noisy, num_inference_steps)

    def denoise(self, batch: Sequence[Fading]) -> None:
        for each in batch:
            each.steps_left -= 1

    def images(self, latents: Tensor) -> Tensor:
        return ((latents.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).contiguous()

    def _cells(self, condition_BQD: Tensor) -> Tensor:
        return self.colours(condition_BQD.mean(1)).unflatten(1, (3, self.num_cells, -1))

    def _check(self, condition_BQD: Tensor, null_condition_QD: Tensor | None) -> None:
        shape, width = tuple(condition_BQD.shape), self.condition_width
        if len(shape) != 3 or shape[2] != width:
            raise ValueError(f"condition_BQD has shape {shape}, the decoder reads (B, Q, {width})")
        if null_condition_QD is not None and tuple(null_condition_QD.shape) != shape[1:]:
            null = tuple(null_condition_QD.shape)
            raise ValueError(f"null_condition_QD has shape {null}, needed is {shape[1:]}")
