"""Stable Diffusion v1.5 that reads visual embeddings in place of text (paper section 2.1).

Only the K and V projections of the cross-attentions differ from the original: they take vectors of
the language model's width. The U-Net is trained, the autoencoder stays as it is.

Shapes: B batch, Q embeddings of an image, D language width, C channels, H W pixels, Z latent
channels, h w latent positions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import Generator, Tensor, nn

from emu.config import DecoderConfig
from emu.decoders.autoencoder import (
    autoencoder_loss,
    initialise_autoencoder,
    pixels_of,
    posterior_of,
    sampled,
    standardise_latents,
)
from emu.decoders.base import AutoencoderStage, Noise, check_conditions, load_part
from emu.decoders.denoising import Denoising, denoise
from emu.decoders.diffusion import (
    denoising_loss,
    drop_conditions,
    initial_noise,
    noise_schedule,
    schedule_options,
    unet_sizes,
    with_condition_width,
)
from emu.decoders.safety import CHECKER, PROCESSOR, SafetyChecker

UNET, VAE, SCHEDULER = "unet", "vae", "scheduler"


class StableDiffusionDecoder(nn.Module):
    """U-Net, autoencoder and noise schedule from diffusers, conditioned on the language model's embeddings."""

    kind: ClassVar[str] = "stable_diffusion"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        schedule: PNDMScheduler,
        safety: SafetyChecker | None = None,
        snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae.requires_grad_(False)
        self.schedule = schedule
        self.safety = safety
        self.snr_gamma = snr_gamma

    @property
    def condition_width(self) -> int:
        """Width of the embeddings that the cross-attentions read."""
        return self.unet.config["cross_attention_dim"]

    @property
    def latent_factor(self) -> int:
        """Pixels a latent position covers along one side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def image_multiple(self) -> int:
        """What height and width of an image must be multiples of: the U-Net halves the latents, too."""
        return self.latent_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @classmethod
    def from_config(cls, config: DecoderConfig, condition_width: int, seed: int) -> Self:
        """A decoder with random weights; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(**unet_sizes(config, condition_width))
            vae = AutoencoderKL(**vae_sizes(config))
        initialise_autoencoder(vae)
        schedule = PNDMScheduler(**schedule_options(config), skip_prk_steps=True)
        return cls(unet, vae, schedule, snr_gamma=config.snr_gamma)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The decoder of a directory in the layout of diffusers, in evaluation mode.

        Raises FileNotFoundError for what is absent, ValueError naming every weight that does not fit.
        """
        directory = Path(directory)
        for part in (UNET, VAE, SCHEDULER):
            if not (directory / part).is_dir():
                raise FileNotFoundError(f"no decoder at {directory}: the folder {part} is absent")
        unet = load_part(UNet2DConditionModel, directory / UNET, dtype)
        vae = load_part(AutoencoderKL, directory / VAE, dtype)
        schedule: Any = PNDMScheduler.from_pretrained(directory / SCHEDULER, local_files_only=True)
        decoder = cls(unet, vae, schedule, SafetyChecker.find(directory, device, dtype))
        return decoder.to(device).eval()

    @classmethod
    def from_pretrained(cls, directory: str | Path, condition_width: int, seed: int) -> Self:
        """Stable Diffusion's weights; only K and V of the cross-attentions are initialised from the seed.

        Raises ValueError where anything else does not fit.
        """
        source = cls.load(directory)
        unet = with_condition_width(source.unet, condition_width, seed)
        return cls(unet, source.vae, source.schedule, source.safety)

    def save(self, directory: str | Path) -> None:
        """Writes the layout of diffusers: `unet/`, `vae/`, `scheduler/`, and the safety checker."""
        directory = Path(directory)
        self.unet.save_pretrained(directory / UNET)
        self.vae.save_pretrained(directory / VAE)
        self.schedule.save_config(directory / SCHEDULER)
        for file in directory.glob("*/*.safetensors"):  # made readable by their owner only
            shutil.copymode(file.with_name("config.json"), file)
        if self.safety is not None:
            self.safety.save(directory)
        write_model_index(directory, self.safety is not None)

    def trained_network(self) -> tuple[str, nn.Module]:
        """The U-Net."""
        return "unet", self.unet

    def fit_conditions(self, conditions_UQD: Tensor) -> None:
        """Nothing: the cross-attentions read the embeddings as they are (released code)."""

    def autoencoder_stage(self) -> AutoencoderStage | None:
        """The autoencoder, where there is no pretrained one."""
        vae = self.vae
        return AutoencoderStage(
            vae, partial(autoencoder_loss, vae), partial(standardise_latents, vae)
        )

    def loss(
        self,
        condition_BQD: Tensor,
        pixels_BCHW: Tensor,
        generator: Noise = None,
        null_condition_QD: Tensor | None = None,
        drop_probability: float = 0.1,
    ) -> Tensor:
        """Mean squared error of the predicted noise (paper: epsilon prediction); pixels in [-1, 1].

        A decoder from a configuration may predict v or the clean latents and weight the times (`DecoderConfig`).
        Without a null condition nothing is dropped.
        """
        check_conditions(condition_BQD, null_condition_QD, self.condition_width)
        condition_BQD = drop_conditions(
            condition_BQD, null_condition_QD, drop_probability, generator
        )
        latents = self.encode(pixels_BCHW, generator)
        return denoising_loss(
            self.unet, self.schedule, latents, condition_BQD, generator, self.snr_gamma
        )

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor, generator: Noise = None) -> Tensor:
        """Latents `BZhw` of pixels in [-1, 1], sampled from the autoencoder's posterior."""
        latents = sampled(posterior_of(self.vae, pixels_BCHW), generator)
        return latents * self.vae.config["scaling_factor"]

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
        """Images at noise (`VisualDecoder.begin`)."""
        check_conditions(condition_NQD, null_condition_QD, self.condition_width)
        steps = noise_schedule(scheduler, self.schedule, num_inference_steps)
        noise = initial_noise(
            self.unet,
            len(condition_NQD),
            height,
            width,
            self.latent_factor,
            self.image_multiple,
            generator,
            initial_latents,
        )
        return Denoising.begin(steps, noise, condition_NQD, null_condition_QD, guidance_scale)

    def denoise(self, batch: Sequence[Denoising]) -> None:
        """One step of each (`VisualDecoder.denoise`)."""
        denoise(self.unet, batch)

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        """The images `NHWC` in uint8 of latents without noise; those that the safety checker rejects are black."""
        decoded = pixels_of(self.vae, latents / self.vae.config["scaling_factor"])
        levels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
        images_BHWC = levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return images_BHWC if self.safety is None else self.safety(images_BHWC)


def write_model_index(directory: Path, has_safety: bool) -> None:
    """Writes `model_index.json`, with which diffusers opens the folder as a pipeline without a text encoder.

    After `import emu`, `DiffusionPipeline.from_pretrained(directory)` gives `emu.huggingface.pipeline`'s class.
    """
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        CHECKER: ["stable_diffusion", "StableDiffusionSafetyChecker"]
        if has_safety
        else [None, None],
        PROCESSOR: ["transformers", "CLIPImageProcessor"] if has_safety else [None, None],
        "requires_safety_checker": has_safety,
    }
    index = {"_class_name": "EmuDecoderPipeline", "_diffusers_version": diffusers.__version__}
    (directory / "model_index.json").write_text(json.dumps(index | parts, indent=2) + "\n")


def vae_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The arguments of diffusers' autoencoder; the defaults of the configuration give SD v1.5."""
    levels = len(config.vae_channels)
    return {
        "sample_size": config.image_size,
        "latent_channels": config.latent_channels,
        "block_out_channels": config.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": config.vae_layers,
        "norm_num_groups": config.vae_groups,
        "scaling_factor": config.scaling_factor,
    }
