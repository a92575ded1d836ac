"""A LoRA adapter as all of a model that is trained (paper section 3.4)."""

from __future__ import annotations

import dataclasses
import math

import torch

from emu.config import AdapterConfig
from emu.models.adapter import LORA, add_adapter
from emu.models.emu import Emu


def train_new_adapter(model: Emu, config: AdapterConfig, seed: int) -> None:
    """Puts a fresh adapter on a model that was loaded, as all of it that is trained (paper section 3.4).

    The weights beneath stay the very tensors they were, frozen. Until it is trained the adapter changes no
    answer; the same seed draws the same one. Raises ValueError for a model that already has an adapter.
    """
    if model.config.adapter is not None:
        raise ValueError(
            "the model has an adapter: fold it in with model.merge_adapter(), or train it on with "
            "train_adapter_alone(model)"
        )
    add_adapter(model.language, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.language.lm.named_parameters():
            if f"{LORA}A" in name:
                bound = 1 / math.sqrt(weight.shape[1])  # peft's own, but from our generator
                drawn = torch.rand(weight.shape, generator=generator) * 2 - 1
                weight.copy_(drawn * bound)
            elif f"{LORA}B" in name:
                weight.zero_()
    model.config = dataclasses.replace(model.config, adapter=config)
    train_adapter_alone(model)


def train_adapter_alone(model: Emu) -> None:
    """Freezes everything but the adapter. Raises ValueError for a model without one."""
    if model.config.adapter is None:
        raise ValueError("the model has no adapter to train; train_new_adapter(model, …) adds one")
    for name, weight in model.named_parameters():
        weight.requires_grad_(LORA in name)
