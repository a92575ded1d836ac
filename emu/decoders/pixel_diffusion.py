"""A diffusion decoder on pixels, for small images: the U-Net of Stable Diffusion without an autoencoder.

Blocks of `factor` x `factor` pixels become channels (pixel unshuffle), so the U-Net sees an image of 64 pixels as
16 x 16 positions of 48 channels, and nothing is lost. There is no stage before the U-Net's and no blur of a small
autoencoder. The factor is `latent_factor` of `DecoderConfig`, as with an autoencoder, whose other fields are unused.

The conditions are standardised, each dimension on its own, before the U-Net reads them: most of what a small model
regresses is common to all prompts. The embeddings of an image, or their mean, also enter every residual block, beside
the time, and the U-Net is given coordinates.

Shapes: B batch, Q embeddings of an image, D language width, C channels, H W pixels, Z = 3 * factor^2, h w positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from emu.config import DecoderConfig
from emu.decoders import write_decoder_file
from emu.decoders.base import AutoencoderStage, Noise, check_conditions, load_part
from emu.decoders.denoising import Denoising, denoise
from emu.decoders.diffusion import (
    NUM_COORDINATES,
    contrast_weights,
    denoising_loss,
    drop_conditions,
    initial_noise,
    noise_schedule,
    schedule_options,
    unet_sizes,
    with_condition_width,
)

UNET, SCHEDULER, CONDITIONS = "unet", "scheduler", "conditions.safetensors"
DEFAULT_SCHEDULER = "ddim"


class PixelDiffusionDecoder(nn.Module):
    """A U-Net and a noise schedule from diffusers on unshuffled pixels in [-1, 1]."""

    kind: ClassVar[str] = "pixel_diffusion"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedule: DDIMScheduler,
        snr_gamma: float | None = None,
        contrast_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.unet, self.schedule = unet, schedule
        self.snr_gamma, self.contrast_weight = snr_gamma, contrast_weight
        self.factor = math.isqrt(unet.config["out_channels"] // 3)
        self.register_buffer("mean_D", torch.zeros(self.condition_width))
        self.register_buffer("scale_D", torch.ones(self.condition_width))

    @property
    def condition_width(self) -> int:
        """Width of the embeddings that the cross-attentions read."""
        return self.unet.config["cross_attention_dim"]

    @property
    def image_multiple(self) -> int:
        """What height and width of an image must be multiples of."""
        return self.factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @classmethod
    def from_config(cls, config: DecoderConfig, condition_width: int, seed: int) -> Self:
        """A decoder with random weights; the same seed gives the same weights."""
        sizes = unet_sizes(config, condition_width)
        sizes["out_channels"] = 3 * config.latent_factor**2
        sizes["in_channels"] = sizes["out_channels"] + NUM_COORDINATES
        sizes |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": condition_width * config.num_block_embeddings,
            "resnet_time_scale_shift": "scale_shift",
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(**sizes)
        schedule = DDIMScheduler(**schedule_options(config), clip_sample=False)
        return cls(unet, schedule, config.snr_gamma, config.contrast_weight)

    @classmethod
    def from_pretrained(cls, directory: str | Path, condition_width: int, seed: int) -> Self:
        """The weights of a folder, to be trained further; only what takes the condition is new, from the seed."""
        source = cls.load(directory)
        return cls(with_condition_width(source.unet, condition_width, seed), source.schedule)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The decoder that `save` wrote, in evaluation mode.

        Raises FileNotFoundError for what is absent, ValueError naming every weight that does not fit.
        """
        directory = Path(directory)
        for part in (UNET, SCHEDULER):
            if not (directory / part).is_dir():
                raise FileNotFoundError(f"no decoder at {directory}: the folder {part} is absent")
        if not (directory / CONDITIONS).is_file():
            raise FileNotFoundError(f"no decoder at {directory}: the file {CONDITIONS} is absent")
        unet = load_part(UNet2DConditionModel, directory / UNET, dtype)
        schedule: Any = DDIMScheduler.from_pretrained(directory / SCHEDULER, local_files_only=True)
        decoder = cls(unet, schedule)
        statistics = load_file(directory / CONDITIONS)
        for name in ("mean_D", "scale_D"):
            found, own = statistics.get(name), decoder.get_buffer(name)
            if found is None or found.shape != own.shape:
                shape = None if found is None else tuple(found.shape)
                raise ValueError(
                    f"{directory / CONDITIONS}: {name} has shape {shape}, needed is {tuple(own.shape)}"
                )
            own.copy_(found)
        return decoder.to(device).eval()

    def save(self, directory: str | Path) -> None:
        """Writes `unet/` and `scheduler/` as diffusers does, the statistics of conditions, and `decoder.json`."""
        directory = Path(directory)
        self.unet.save_pretrained(directory / UNET)
        self.schedule.save_config(directory / SCHEDULER)
        statistics = {name: self.get_buffer(name).cpu() for name in ("mean_D", "scale_D")}
        save_file(statistics, directory / CONDITIONS)
        write_decoder_file(directory, self.kind, self.image_multiple)

    def trained_network(self) -> tuple[str, nn.Module]:
        """The U-Net."""
        return "unet", self.unet

    def fit_conditions(self, conditions_UQD: Tensor) -> None:
        """Standardises conditions like these: mean 0 and deviation 1 in each dimension."""
        flat_ND = conditions_UQD.flatten(0, 1).float().cpu()
        self.get_buffer("mean_D").copy_(flat_ND.mean(dim=0))
        self.get_buffer("scale_D").copy_(flat_ND.std(dim=0, correction=0).clamp(min=1e-6))

    def autoencoder_stage(self) -> AutoencoderStage | None:
        """None: there is no autoencoder."""
        return None

    def loss(
        self,
        condition_BQD: Tensor,
        pixels_BCHW: Tensor,
        generator: Noise = None,
        null_condition_QD: Tensor | None = None,
        drop_probability: float = 0.1,
    ) -> Tensor:
        """The denoising loss of pixels in [-1, 1]; without a null condition nothing is dropped."""
        check_conditions(condition_BQD, null_condition_QD, self.condition_width)
        condition_BQD = drop_conditions(
            condition_BQD, null_condition_QD, drop_probability, generator
        )
        latents_BZhw = functional.pixel_unshuffle(pixels_BCHW, self.factor)
        standard_BQD = self._standardised(condition_BQD)
        return denoising_loss(
            self.unet,
            self.schedule,
            latents_BZhw,
            standard_BQD,
            generator,
            self.snr_gamma,
            contrast_weights(latents_BZhw, self.contrast_weight),
        )

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
        """Images at noise (`VisualDecoder.begin`); `initial_latents` is noise `NZhw` of unit variance."""
        check_conditions(condition_NQD, null_condition_QD, self.condition_width)
        steps = noise_schedule(scheduler or DEFAULT_SCHEDULER, self.schedule, num_inference_steps)
        noise = initial_noise(
            self.unet,
            len(condition_NQD),
            height,
            width,
            self.factor,
            self.image_multiple,
            generator,
            initial_latents,
        )
        standard_NQD = self._standardised(condition_NQD)
        null_QD = self._standardised(null_condition_QD)
        return Denoising.begin(steps, noise, standard_NQD, null_QD, guidance_scale)

    def denoise(self, batch: Sequence[Denoising]) -> None:
        """One step of each (`VisualDecoder.denoise`)."""
        denoise(self.unet, batch)

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        """The images `NHWC` in uint8 of latents without noise."""
        pixels_BCHW = functional.pixel_shuffle(latents.float(), self.factor)
        levels = (pixels_BCHW / 2 + 0.5).clamp(0, 1) * 255
        return levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _standardised(self, condition: Tensor) -> Tensor:
        """Conditions of any leading shape as the U-Net reads them."""
        mean_D, scale_D = self.get_buffer("mean_D"), self.get_buffer("scale_D")
        return (condition.to(mean_D) - mean_D) / scale_D
