"""Stable Diffusion v1.5 that reads visual embeddings in place of text (paper section 2.1).

Only the K and V projections of the cross-attentions differ from the original: they take vectors of
the language model's width. The U-Net is trained, the autoencoder stays as it is.

Shapes: B batch, Q embeddings of an image, D language width, C channels, H W pixels, Z latent
channels, h w latent positions.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor, nn
from torch.nn import functional

from emu.config import DecoderConfig
from emu.decoders.autoencoder import (
    autoencoder_loss,
    initialise_autoencoder,
    pixels_of,
    posterior_of,
    standardise_latents,
)
from emu.decoders.base import AutoencoderStage, load_part
from emu.decoders.safety import SafetyChecker

UNET, VAE, SCHEDULER = "unet", "vae", "scheduler"
SCHEDULERS: dict[str, Any] = {
    "pndm": PNDMScheduler,  # released: 50 steps
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


class StableDiffusionDecoder(nn.Module):
    """U-Net, autoencoder and noise schedule from diffusers, conditioned on the language model's embeddings."""

    kind: ClassVar[str] = "stable_diffusion"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        schedule: PNDMScheduler,
        safety: SafetyChecker | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae.requires_grad_(False)
        self.schedule = schedule
        self.safety = safety

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
        schedule = PNDMScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        )
        return cls(unet, vae, schedule)

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
        sizes = dict(source.unet.config) | {"cross_attention_dim": condition_width}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet: Any = UNet2DConditionModel.from_config(sizes)
        weights = {
            name: tensor
            for name, tensor in source.unet.state_dict().items()
            if not reads_condition(name)
        }
        missing = [name for name in unet.state_dict() if name not in weights]
        if not all(reads_condition(name) for name in missing):
            raise ValueError(f"the U-Net in {directory} lacks {missing}")
        unet.load_state_dict(unet.state_dict() | weights)
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

    def trained_network(self) -> tuple[str, nn.Module]:
        """The U-Net."""
        return "unet", self.unet

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
        generator: Generator | None = None,
        null_condition_QD: Tensor | None = None,
        drop_probability: float = 0.1,
    ) -> Tensor:
        """Mean squared error of the predicted noise (paper: epsilon prediction); pixels in [-1, 1].

        Without a null condition nothing is dropped.
        """
        self._check(condition_BQD, null_condition_QD)
        size, device = len(condition_BQD), condition_BQD.device
        if null_condition_QD is not None:
            uniform = _uniform(size, generator, device)
            dropped = (uniform < drop_probability)[:, None, None]
            condition_BQD = torch.where(dropped, null_condition_QD.to(condition_BQD), condition_BQD)
        latents = self.encode(pixels_BCHW, generator)
        noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
        schedule: Any = DDPMScheduler.from_config(self.schedule.config)
        num_times = schedule.config["num_train_timesteps"]
        times = (_uniform(size, generator, device) * num_times).long()
        noisy = schedule.add_noise(latents, noise, times)
        predicted = self.unet(noisy, times, condition_BQD.to(noisy.dtype)).sample
        return functional.mse_loss(predicted.float(), noise.float())

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor, generator: Generator | None = None) -> Tensor:
        """Latents `BZhw` of pixels in [-1, 1], sampled from the autoencoder's posterior."""
        return (
            posterior_of(self.vae, pixels_BCHW).sample(generator)
            * self.vae.config["scaling_factor"]
        )

    @torch.no_grad()
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
        scheduler: str | None = None,
    ) -> Tensor:
        """Images `BHWC` in uint8, generated from noise under classifier-free guidance.

        The null condition stands for "no prompt": the embeddings regressed from the empty one
        (released pipeline). A guidance scale of 1 leaves it out.
        """
        self._check(condition_BQD, null_condition_QD)
        steps = noise_schedule(scheduler, self.schedule, num_inference_steps)
        latents = self._initial_latents(
            len(condition_BQD), height, width, generator, initial_latents
        )
        latents = latents * steps.init_noise_sigma
        guided = guidance_scale != 1
        conditions = condition_BQD
        if guided:
            null = null_condition_QD.to(condition_BQD).expand_as(condition_BQD)
            conditions = torch.cat([null, condition_BQD])
        conditions = conditions.to(self.unet.dtype)
        for time in steps.timesteps.to(latents.device):
            inputs = steps.scale_model_input(torch.cat([latents] * 2) if guided else latents, time)
            noise = self.unet(inputs, time, conditions).sample
            if guided:
                without, with_it = noise.chunk(2)
                noise = without + guidance_scale * (with_it - without)
            latents = steps.step(noise, time, latents).prev_sample
        return self._images(latents)

    def _check(self, condition_BQD: Tensor, null_condition_QD: Tensor | None) -> None:
        shape, width = tuple(condition_BQD.shape), self.condition_width
        if len(shape) != 3 or shape[2] != width:
            raise ValueError(f"condition_BQD has shape {shape}, the decoder reads (B, Q, {width})")
        if null_condition_QD is not None and tuple(null_condition_QD.shape) != shape[1:]:
            null = tuple(null_condition_QD.shape)
            raise ValueError(f"null_condition_QD has shape {null}, needed is {shape[1:]}")

    def _initial_latents(
        self,
        size: int,
        height: int,
        width: int,
        generator: Generator | None,
        initial_latents: Tensor | None,
    ) -> Tensor:
        multiple = self.image_multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ValueError(f"an image of {height} x {width}: give multiples of {multiple}")
        channels = self.unet.config["in_channels"]
        shape = (size, channels, height // self.latent_factor, width // self.latent_factor)
        if initial_latents is None:
            return randn_tensor(shape, generator, self.unet.device, self.unet.dtype)
        if tuple(initial_latents.shape) != shape:
            raise ValueError(
                f"initial_latents have shape {tuple(initial_latents.shape)}, needed is {shape}"
            )
        return initial_latents.to(self.unet.device, self.unet.dtype)

    def _images(self, latents: Tensor) -> Tensor:
        decoded = pixels_of(self.vae, latents / self.vae.config["scaling_factor"])
        levels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
        images_BHWC = levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return images_BHWC if self.safety is None else self.safety(images_BHWC)


def noise_schedule(name: str | None, schedule: PNDMScheduler, num_inference_steps: int) -> Any:
    """A new scheduler of diffusers by name, set to its steps (it keeps state, so one per call)."""
    name = name or next(iter(SCHEDULERS))
    if name not in SCHEDULERS:
        raise ValueError(f"no scheduler {name!r}; there are {sorted(SCHEDULERS)}")
    num_times = schedule.config["num_train_timesteps"]
    if not 1 <= num_inference_steps <= num_times:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, give 1 to {num_times}")
    options = {"clip_sample": False} if name == "ddim" else {}  # latents are not in [-1, 1]
    steps = SCHEDULERS[name].from_config(schedule.config, **options)
    steps.set_timesteps(num_inference_steps)
    return steps


def reads_condition(name: str) -> bool:
    """Whether a U-Net weight takes the condition: the K and V of a cross-attention."""
    return name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))


def unet_sizes(config: DecoderConfig, condition_width: int) -> dict[str, Any]:
    """The arguments of diffusers' U-Net; the defaults of the configuration give SD v1.5."""
    attends = config.unet_attention
    return {
        "sample_size": config.image_size // config.latent_factor,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.unet_channels,
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)
        ),
        "layers_per_block": config.unet_layers,
        "attention_head_dim": config.unet_heads,  # diffusers' name; it counts heads in SD v1.5
        "norm_num_groups": config.unet_groups,
        "cross_attention_dim": condition_width,
    }


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


def _uniform(size: int, generator: Generator | None, device: torch.device) -> Tensor:
    source = device if generator is None else generator.device
    return torch.rand(size, generator=generator, device=source).to(device)
