"""The autoencoder between pixels and latents, and its training where no weights are at hand.

Shapes: B batch, C channels, H W pixels, Z latent channels, h w latent positions.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import FloatTensor, Generator, Tensor
from torch.nn import functional

KL_WEIGHT = 1e-6  # latent diffusion (arXiv 2112.10752): a slight pull towards unit variance


def posterior_of(vae: AutoencoderKL, pixels_BCHW: Tensor) -> DiagonalGaussianDistribution:
    """The distribution of the latents of pixels in [-1, 1]."""
    return vae.encode(pixels_BCHW.to(vae.dtype), return_dict=False)[0]


def pixels_of(vae: AutoencoderKL, latents_BZhw: Tensor) -> Tensor:
    """Pixels, about in [-1, 1], of unscaled latents."""
    return vae.decode(cast("FloatTensor", latents_BZhw), return_dict=False)[0]


def autoencoder_loss(
    vae: AutoencoderKL, pixels_BCHW: Tensor, generator: Generator | None = None
) -> Tensor:
    """Reconstruction error (L1) of pixels in [-1, 1] and the divergence of the latents."""
    posterior = posterior_of(vae, pixels_BCHW)
    rebuilt = pixels_of(vae, posterior.sample(generator))
    return functional.l1_loss(rebuilt, pixels_BCHW) + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def set_latent_scale(
    vae: AutoencoderKL, pixels_BCHW: Tensor, generator: Generator | None = None
) -> float:
    """Sets and returns the factor that brings the latents of these images to unit deviation.

    Of drawn latents, as the U-Net sees them, not of their means.
    """
    latents = posterior_of(vae, pixels_BCHW).sample(generator)
    factor = float(1 / latents.float().std().clamp(min=1e-6))
    vae.register_to_config(scaling_factor=factor)
    return factor
