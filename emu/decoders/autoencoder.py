"""The autoencoder between pixels and latents, and its training from random weights.

Shapes: B batch, C channels, H W pixels, Z latent channels, h w latent positions.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import FloatTensor, Generator, Tensor, nn
from torch.nn import functional

from emu.decoders.base import Noise

KL_WEIGHT = 1e-6  # latent diffusion (arXiv 2112.10752): a slight pull towards unit variance
SQUARED_WEIGHT = 4.0  # without it small objects of strong colour are learned last
GAIN = 3.0  # of initial convolutions: with torch's own each shrinks a signal by sqrt(3)
INITIAL_LOGVAR = -8.0  # noise of initial latents, far below the differences between images


def posterior_of(vae: AutoencoderKL, pixels_BCHW: Tensor) -> DiagonalGaussianDistribution:
    """The distribution of the latents of pixels in [-1, 1]."""
    return vae.encode(pixels_BCHW.to(vae.dtype), return_dict=False)[0]


def sampled(posterior: DiagonalGaussianDistribution, generator: Noise = None) -> Tensor:
    """Latents from their distribution."""
    source: Any = generator
    return posterior.sample(source)


def pixels_of(vae: AutoencoderKL, latents_BZhw: Tensor) -> Tensor:
    """Pixels, about in [-1, 1], of unscaled latents."""
    return vae.decode(cast("FloatTensor", latents_BZhw), return_dict=False)[0]


@torch.no_grad()
def initialise_autoencoder(vae: AutoencoderKL) -> None:
    """Rescales random weights so that colours are learned in some hundred steps; the architecture is unchanged.

    With the default initialisation ten convolutions in a row shrink the differences between pale images to a
    hundredth, below the noise of the latents, and an autoencoder of small images learns only outlines. Therefore
    the convolutions outside residual branches are amplified, the residual branches start at zero, and the latents
    start with little noise.
    """
    for name, part in vae.named_modules():
        if name.endswith((".conv2", ".to_out.0")):  # the last of a residual branch
            for parameter in part.parameters():
                parameter.zero_()
        elif isinstance(part, nn.Conv2d) and not name.endswith(".conv1"):
            part.weight.mul_(GAIN)
    channels = vae.config["latent_channels"]
    _quant(vae).bias[channels:].add_(INITIAL_LOGVAR)


def autoencoder_loss(vae: AutoencoderKL, pixels_BCHW: Tensor, generator: Noise = None) -> Tensor:
    """Reconstruction error of pixels in [-1, 1], absolute and squared, and the latents' divergence."""
    posterior = posterior_of(vae, pixels_BCHW)
    rebuilt = pixels_of(vae, sampled(posterior, generator))
    squared = SQUARED_WEIGHT * functional.mse_loss(rebuilt, pixels_BCHW)
    return functional.l1_loss(rebuilt, pixels_BCHW) + squared + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def standardise_latents(
    vae: AutoencoderKL, pixels_BCHW: Tensor, generator: Generator | None = None
) -> None:
    """Gives each latent channel mean 0 and deviation 1 on these images; reconstructions stay equal.

    The 1x1 convolutions on both sides of the latents absorb the change, so the scaling factor becomes 1. One
    common factor would keep the means of the channels: for pale images they are most of the signal, and the noise
    of diffusion would hide the rest. Measured on sampled latents, as the U-Net sees them, not on their means.
    """
    latents = posterior_of(vae, pixels_BCHW).sample(generator).float()
    mean_Z = latents.mean(dim=(0, 2, 3))
    factor_Z = 1 / latents.std(dim=(0, 2, 3)).clamp(min=1e-6)
    into, out_of = _quant(vae), _post_quant(vae)
    channels = len(mean_Z)
    out_of.bias.add_(out_of.weight[:, :, 0, 0] @ mean_Z)
    out_of.weight.div_(factor_Z[None, :, None, None])
    into.bias[:channels].sub_(mean_Z).mul_(factor_Z)
    into.weight[:channels].mul_(factor_Z[:, None, None, None])
    into.bias[channels:].add_(2 * factor_Z.log())  # the logarithm of a variance
    vae.register_to_config(scaling_factor=1.0)


class _Pointwise(Protocol):
    """A 1x1 convolution with a bias, as both sides of the latents have one."""

    weight: Tensor
    bias: Tensor


def _quant(vae: AutoencoderKL) -> _Pointwise:
    return cast("_Pointwise", vae.quant_conv)


def _post_quant(vae: AutoencoderKL) -> _Pointwise:
    return cast("_Pointwise", vae.post_quant_conv)
