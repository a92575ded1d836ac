"""The noise schedule of diffusion decoders, their training loss, and guided sampling.

A U-Net is trained to predict the noise (epsilon, as in the paper and Stable Diffusion), v, or the clean latents
(`sample`). In a small image most of what the condition says is decided at the noisiest times. There the clean image,
and not the noise, is hard to predict, so small decoders that are trained from scratch predict it, with min-SNR weights
(arXiv 2303.09556) and noise that is shifted towards those times (arXiv 2301.11093).

Shapes: B batch, Q embeddings of an image, D language width, Z latent channels, h w latent positions, T times.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from emu.config import DecoderConfig
from emu.decoders.base import Noise

NUM_COORDINATES = 6
SCHEDULERS: dict[str, Any] = {
    "pndm": PNDMScheduler,  # released: 50 steps
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


def schedule_options(config: DecoderConfig) -> dict[str, Any]:
    """The arguments of diffusers' schedulers; the defaults of the configuration give SD v1.5."""
    options: dict[str, Any] = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    if config.prediction != "epsilon":
        options["prediction_type"] = config.prediction
    if config.noise_shift != 1:
        options["trained_betas"] = shifted_betas(config)
    return options


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


def reads_condition(name: str) -> bool:
    """Whether a U-Net weight takes the condition: K, V of the cross-attentions, the class embedding's first layer."""
    return name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) or name.startswith(
        "class_embedding.linear_1."
    )


def with_condition_width(
    source: UNet2DConditionModel, condition_width: int, seed: int
) -> UNet2DConditionModel:
    """The U-Net for conditions of this width; only what takes them is initialised, from the seed."""
    sizes = dict(source.config) | {"cross_attention_dim": condition_width}
    if source.config["class_embed_type"] is not None:
        num = (
            source.config["projection_class_embeddings_input_dim"]
            // source.config["cross_attention_dim"]
        )
        sizes["projection_class_embeddings_input_dim"] = num * condition_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel.from_config(sizes)
    weights = {
        name: tensor for name, tensor in source.state_dict().items() if not reads_condition(name)
    }
    unet.load_state_dict(unet.state_dict() | weights)
    return unet


def shifted_betas(config: DecoderConfig) -> list[float]:
    """The betas of a schedule whose ratio of noise to signal is `noise_shift` times that of the scaled-linear one."""
    times = config.num_train_timesteps
    on_cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # of a meta decoder, too
    roots_T = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, times, **on_cpu)
    kept_T = (1 - roots_T.square()).cumprod(0)  # alphas_cumprod: the share of the signal
    snr_T = kept_T / (1 - kept_T) / config.noise_shift**2
    shifted_T = snr_T / (1 + snr_T)
    before_T = torch.cat([torch.ones(1, **on_cpu), shifted_T[:-1]])
    return (1 - shifted_T / before_T).clamp(max=0.999).tolist()


def denoising_loss(
    unet: UNet2DConditionModel,
    schedule: Any,
    latents: Tensor,
    condition_BQD: Tensor,
    generator: Noise = None,
    snr_gamma: float | None = None,
    weights_B1hw: Tensor | None = None,
) -> Tensor:
    """Mean squared error of what the U-Net predicts at random times, weighted by min-SNR if `snr_gamma` is given.

    `weights_B1hw` weights the positions of each image.
    """
    training: Any = DDPMScheduler.from_config(schedule.config)
    noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
    times_B = uniform(len(latents), generator, latents.device)
    times_B = (times_B * training.config["num_train_timesteps"]).long()
    noisy = training.add_noise(latents, noise, times_B)
    predicted = predict(unet, noisy, times_B, condition_BQD.to(noisy.dtype))
    kind = training.config["prediction_type"]
    target = noise
    if kind == "v_prediction":
        target = training.get_velocity(latents, noise, times_B)
    elif kind == "sample":
        target = latents
    squares = (predicted.float() - target.float()).square()
    squares_B = (squares if weights_B1hw is None else weights_B1hw * squares).flatten(1).mean(1)
    if snr_gamma is None:
        return squares_B.mean()
    kept_B = training.alphas_cumprod.to(latents.device)[times_B]
    return (min_snr_weights(kept_B, kind, snr_gamma) * squares_B).mean()


def contrast_weights(latents_BZhw: Tensor, weight: float) -> Tensor | None:
    """Weights `B1hw` with mean 1: 1 plus `weight` times the share of a position in the variance of its image."""
    if not weight:
        return None
    means = latents_BZhw.mean(dim=(2, 3), keepdim=True)
    squares_B1hw = (latents_BZhw - means).square().mean(dim=1, keepdim=True)
    shares_B1hw = squares_B1hw / squares_B1hw.mean(dim=(2, 3), keepdim=True).clamp(min=1e-4)
    weights_B1hw = 1 + weight * shares_B1hw
    return weights_B1hw / weights_B1hw.mean(dim=(2, 3), keepdim=True)


def predict(
    unet: UNet2DConditionModel, noisy_BZhw: Tensor, times: Tensor, condition_BQD: Tensor
) -> Tensor:
    """The U-Net's prediction from noisy latents.

    A U-Net with a class embedding takes the condition there too: all its embeddings side by side, or their mean if it
    has the width of one. One with more input channels than there are latents takes coordinates.
    """
    pooled = {}
    if unet.config["class_embed_type"] == "projection":
        width = unet.config["projection_class_embeddings_input_dim"]
        is_mean = width == condition_BQD.shape[2]
        pooled["class_labels"] = condition_BQD.mean(dim=1) if is_mean else condition_BQD.flatten(1)
    if unet.config["in_channels"] > noisy_BZhw.shape[1]:
        noisy_BZhw = torch.cat([noisy_BZhw, coordinates(noisy_BZhw)], dim=1)
    return unet(noisy_BZhw, times, condition_BQD, **pooled).sample


def coordinates(latents_BZhw: Tensor) -> Tensor:
    """The position of each latent as `NUM_COORDINATES` channels: x and y from -1 to 1, their sines and cosines."""
    size, _, height, width = latents_BZhw.shape
    y_h = torch.linspace(-1, 1, height, device=latents_BZhw.device, dtype=latents_BZhw.dtype)
    x_w = torch.linspace(-1, 1, width, device=latents_BZhw.device, dtype=latents_BZhw.dtype)
    channels = []
    for line, shape in ((y_h[:, None], (height, width)), (x_w[None, :], (height, width))):
        for wave in (line, (math.pi * line).sin(), (math.pi * line).cos()):
            channels.append(wave.expand(shape))
    return torch.stack(channels).expand(size, -1, -1, -1)


def min_snr_weights(kept_B: Tensor, prediction: str, gamma: float) -> Tensor:
    """The weights of min-SNR-gamma for each prediction, from the share of the signal (`alphas_cumprod`).

    All three give the error of the clean image the weight min(SNR, gamma).
    """
    snr_B = kept_B / (1 - kept_B)
    bounded_B = snr_B.clamp(max=gamma)
    if prediction == "sample":
        return bounded_B
    return bounded_B / (snr_B + 1) if prediction == "v_prediction" else bounded_B / snr_B


def noise_schedule(name: str | None, schedule: Any, num_inference_steps: int) -> Any:
    """A new scheduler of diffusers by name, set to its steps (it keeps state, so one per call).

    None takes the first that supports the prediction. Raises ValueError for an unknown one or for a number of steps
    out of range.
    """
    prediction = schedule.config.get("prediction_type", "epsilon")
    known = [each for each in SCHEDULERS if prediction != "sample" or each != "pndm"]
    name = name or known[0]
    if name not in known:
        raise ValueError(f"no scheduler {name!r}; there are {sorted(known)}")
    num_times = schedule.config["num_train_timesteps"]
    if not 1 <= num_inference_steps <= num_times:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, give 1 to {num_times}")
    options = {"clip_sample": False} if name == "ddim" else {}  # latents are not in [-1, 1]
    steps = SCHEDULERS[name].from_config(schedule.config, **options)
    steps.set_timesteps(num_inference_steps)
    return steps


def initial_noise(
    unet: UNet2DConditionModel,
    size: int,
    height: int,
    width: int,
    factor: int,
    image_multiple: int,
    generator: Generator | None,
    given: Tensor | None,
) -> Tensor:
    """Noise `BZhw` of unit variance for images of height x width pixels, `factor` pixels per position.

    `given` noise is taken instead. Raises ValueError for sides that are no multiples of `image_multiple`, and for
    given noise of another shape.
    """
    if min(height, width) < image_multiple or height % image_multiple or width % image_multiple:
        raise ValueError(f"an image of {height} x {width}: give multiples of {image_multiple}")
    shape = (size, unet.config["out_channels"], height // factor, width // factor)
    if given is None:
        return randn_tensor(shape, generator, unet.device, unet.dtype)
    if tuple(given.shape) != shape:
        raise ValueError(f"initial_latents have shape {tuple(given.shape)}, needed is {shape}")
    return given.to(unet.device, unet.dtype)


def drop_conditions(
    condition_BQD: Tensor,
    null_condition_QD: Tensor | None,
    probability: float,
    generator: Noise,
) -> Tensor:
    """The conditions, each replaced by the null condition with this probability; never without a null condition."""
    if null_condition_QD is None:
        return condition_BQD
    uniform_B = uniform(len(condition_BQD), generator, condition_BQD.device)
    dropped = (uniform_B < probability)[:, None, None]
    return torch.where(dropped, null_condition_QD.to(condition_BQD), condition_BQD)


def uniform(size: int, generator: Noise, device: torch.device) -> Tensor:
    """Uniform numbers on `device`, sampled where the generator is; of several, one number from each."""
    if isinstance(generator, list):
        return torch.cat([torch.rand(1, generator=one, device=one.device) for one in generator]).to(
            device
        )
    source = device if generator is None else generator.device
    return torch.rand(size, generator=generator, device=source).to(device)
