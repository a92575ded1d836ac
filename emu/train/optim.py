"""AdamW with the paper's parameter groups, and the learning rates of each step (paper section 3.2)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from emu.recipes import OptimConfig

NO_DECAY = re.compile(
    r"(^|\.)(bias|q_bias|v_bias|pos_embed|cls_token|queries)$"
    r"|(^|[._])(norm\d?|layernorm|ln_visual)\.|norm\.weight$"
    r"|(embed_tokens|relative_bias)\.weight$"
)
PARTS = (
    ("visual.", "vision"),
    ("ln_visual.", "former"),
    ("former.", "former"),
    ("language.regress_head.", "regress"),
    ("language.", "language"),
)


def part_of(name: str) -> str:
    """The part of the model whose learning rate applies to a weight."""
    for prefix, part in PARTS:
        if name.startswith(prefix):
            return part
    raise ValueError(f"weight '{name}' belongs to no known part; known are {[p for p, _ in PARTS]}")


def is_decayed(name: str, weight: torch.Tensor) -> bool:
    """True for matrices; false for norms, biases, position embeddings, class token, queries, token embeddings."""
    return weight.ndim > 1 and not NO_DECAY.search(name)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer: trainable weights by part and weight decay.

    Each group has its `name`, the `weight_names` and the peak learning rate `peak_lr`.
    """
    peaks = {
        "vision": config.vision_lr,
        "former": config.former_lr,
        "language": config.language_lr,
        "regress": config.language_lr if config.regress_lr is None else config.regress_lr,
    }
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        part, decayed = part_of(name), is_decayed(name, weight)
        fresh = {
            "name": f"{part}/{'decay' if decayed else 'no_decay'}",
            "peak_lr": peaks[part],
            "lr": peaks[part],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "weight_names": [],
            "params": [],
        }
        group = groups.setdefault((part, decayed), fresh)
        group["params"].append(weight)
        group["weight_names"].append(name)
    return list(groups.values())


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the trainable weights of a model; fused, except on the meta device."""
    is_fused = not any(weight.is_meta for weight in model.parameters())
    groups = parameter_groups(model, config)
    return AdamW(groups, betas=config.betas, eps=config.eps, fused=is_fused)


def rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate at a step (from 0) relative to its peak: linear warm-up, then cosine decay."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_ratio + (1 - config.final_ratio) * cosine


def visual_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The factor on the learning rate of visual encoder and Causal Former: 0 while frozen, then a warm-up to 1."""
    num_frozen = round(config.visual_freeze_ratio * steps)
    if num_frozen == 0:
        return 1.0
    warmup = max(1, round(config.warmup_ratio * steps))
    return min(1.0, max(0.0, (step - num_frozen + 1) / warmup))


def set_learning_rates(optimizer: Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Set the learning rate of every parameter group for a step; returns their ratio to the peaks."""
    factor = rate_factor(step, steps, config)
    visual = factor * visual_factor(step, steps, config)
    for group in optimizer.param_groups:
        is_visual = group["name"].partition("/")[0] in ("vision", "former")
        group["lr"] = group["peak_lr"] * (visual if is_visual else factor)
    return factor


def network_optimizer(network: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over all weights of a network, with one learning rate."""
    named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    group = {
        "name": "network",
        "peak_lr": config.language_lr,
        "lr": config.language_lr,
        "weight_decay": config.weight_decay,
        "weight_names": [name for name, _ in named],
        "params": [weight for _, weight in named],
    }
    return AdamW([group], betas=config.betas, eps=config.eps, fused=True)


def staged_factor(step: int, steps: int, _: object = None) -> float:
    """The paper's learning rate at a step relative to its peak: of 15k steps a warm-up over 5k, 1/2 from 10k, 1/10
    from 14k on."""
    warmup = round(steps / 3)
    if step < warmup:
        return (step + 1) / warmup
    if step < round(steps * 2 / 3):
        return 1.0
    return 0.5 if step < round(steps * 14 / 15) else 0.1
