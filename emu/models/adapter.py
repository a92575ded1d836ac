"""LoRA adapters on the language model (Emu-I), through peft.

peft is imported where it is used: it takes more than a second, and most models have no adapter.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from emu.config import AdapterConfig
from emu.models.language_model import LanguageModel

if TYPE_CHECKING:
    from emu.models.emu import Emu  # builds upon this module

LORA = ".lora_"


def add_adapter(language: LanguageModel, config: AdapterConfig) -> None:
    """Puts fresh, trainable adapters on the attention projections of every layer.

    An untrained adapter changes nothing. The weight it sits on is frozen and is then called
    `<projection>.base_layer.weight`; the rest of the model keeps its names and stays trainable.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trainable = {name for name, weight in language.lm.named_parameters() if weight.requires_grad}
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets),
            bias="none",
        ),
        language.lm,
    )
    for name, weight in language.lm.named_parameters():  # peft freezes everything but adapters
        weight.requires_grad_(name in trainable or ".lora_" in name)


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


def merge_adapter(language: LanguageModel) -> None:
    """Folds the adapters into the weights they sit on, which become plain and trainable again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(language.lm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            merged = module.get_base_layer().requires_grad_(True)
            setattr(language.lm.get_submodule(parent), leaf, merged)
