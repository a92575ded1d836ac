"""Initial weights, part by part, from one random generator.

Weights of a checkpoint replace them; a small model is trained from them.

Shapes: V vision width, C channels, H W pixels of a patch.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Generator, Tensor, nn

from emu.config import EmuConfig

STD = 0.02  # of the heads, the patch embedding, the class token and the causal queries
WHITE = (1.9303, 2.0749, 2.1459)  # a white pixel under CLIP's normalisation
PATCHES = "visual.trunk.patch_embed.proj"


@torch.no_grad()
def init_weights(
    model: nn.Module, config: EmuConfig, generator: Generator, but: tuple[str, ...] = ()
) -> None:
    """Initialises every parameter of `model`, in the order of its names, but for names that start with one of `but`.

    Values are sampled on the CPU in float32 and copied, so that they do not depend on device and dtype.
    """
    for name, weight in model.named_parameters():
        if name.startswith(but):
            continue
        weight.copy_(initial_value(name, weight, config, generator))
        if name.endswith("embed_tokens.weight"):
            weight[config.special.pad] = 0
    if config.init.ground:
        darken_ground(model, config.init.ground)


def initial_value(name: str, weight: Tensor, config: EmuConfig, generator: Generator) -> Tensor:
    """The initial value of one parameter, in float32 on the CPU."""
    kind = name.rpartition(".")[2]
    if kind == "bias" or kind in ("q_bias", "v_bias") or "lora_B" in name:
        return torch.zeros(weight.shape)
    if "norm" in name or name.startswith("ln_visual"):
        return torch.ones(weight.shape)
    if name.startswith("former."):
        std = former_std(name, weight, config)
    elif name.startswith("visual."):
        std = visual_std(name, config)
    elif "lora_A" in name:
        std = 1 / math.sqrt(3 * weight.shape[1])
    else:
        std = language_std(name, config)
    value = torch.empty(weight.shape)
    return nn.init.trunc_normal_(value, std=std, a=-3 * std, b=3 * std, generator=generator)


def former_std(name: str, weight: Tensor, config: EmuConfig) -> float:
    """T5's standard deviations: attention has no 1/sqrt(d) factor, so the queries' weights contain it."""
    former = config.former
    if name == "former.queries":
        return STD
    if name.startswith("former.relative_bias"):
        return former.d_model**-0.5
    if name.startswith("former.projection"):
        return (3 * former.d_model) ** -0.5  # that of a plain linear layer, as released
    if name.endswith("attention.q.weight"):
        gain = config.init.query_gain if "cross_attention" in name else 1.0
        return gain * (former.d_model * former.d_kv) ** -0.5
    return weight.shape[1] ** -0.5


def visual_std(name: str, config: EmuConfig) -> float:
    """The ViT's standard deviation, smaller in deeper residual branches (as in timm's `Eva`)."""
    if name.endswith("pos_embed"):
        return config.init.position_std
    if ".blocks." not in name:
        return STD
    std = config.init.block_std
    match = re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.", name)
    return std / math.sqrt(2 * (int(match[1]) + 1)) if match else std


def language_std(name: str, config: EmuConfig) -> float:
    """LLaMA's standard deviations: of its layers, of the token embeddings, of the two heads."""
    if name.endswith("embed_tokens.weight"):
        return config.init.embedding_std
    return config.init.language_std if ".layers." in name else STD


def darken_ground(model: nn.Module, ground: float) -> None:
    """Sets the bias of the patch embedding so that it subtracts that fraction of the embedding of a white patch.

    In pale images all patches have nearly the same large embedding, which hides the differences between them.
    """
    parts = dict(model.named_parameters())
    weight_VCHW, bias_V = parts[f"{PATCHES}.weight"], parts[f"{PATCHES}.bias"]
    white_V = weight_VCHW.float().sum(dim=(2, 3)).cpu() @ torch.tensor(WHITE)
    bias_V.copy_(-ground * white_V)
