"""AdamW with the paper's groups of learning rates, and the schedule (paper section 3.2)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from emu.train.config import OptimConfig

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
    """The part of the model whose learning rate a weight takes."""
    for prefix, part in PARTS:
        if name.startswith(prefix):
            return part
    raise ValueError(f"weight '{name}' belongs to no known part; known are {[p for p, _ in PARTS]}")


def is_decayed(name: str, weight: torch.Tensor) -> bool:
    """True for matrices; false for norms, biases, positions, class token, queries, embeddings."""
    return weight.ndim > 1 and not NO_DECAY.search(name)


def weight_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable weights by part and decay, as groups of an optimizer; frozen weights are left out.

    Each group names itself and its weights, and carries its peak rate as `peak_lr`.
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
    """AdamW over the trainable weights of a model, in one pass over them where they have values."""
    is_fused = not any(weight.is_meta for weight in model.parameters())
    groups = weight_groups(model, config)
    return AdamW(groups, betas=config.betas, eps=config.eps, fused=is_fused)


def rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The part of the peak rate at a step (from 0): linear up over the warmup, then a cosine down."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_ratio + (1 - config.final_ratio) * cosine


def visual_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The part of that rate that vision and former take at a step: 0 while they wait, then rising to 1."""
    wait = round(config.visual_wait_ratio * steps)
    if wait == 0:
        return 1.0
    warmup = max(1, round(config.warmup_ratio * steps))
    return min(1.0, max(0.0, (step - wait + 1) / warmup))


def set_rates(optimizer: Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Give every group its rate for a step."""
    factor = rate_factor(step, steps, config)
    visual = factor * visual_factor(step, steps, config)
    for group in optimizer.param_groups:
        is_visual = group["name"].partition("/")[0] in ("vision", "former")
        group["lr"] = group["peak_lr"] * (visual if is_visual else factor)
