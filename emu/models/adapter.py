"""LoRA adapters on the language model (Emu-I), through peft."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from emu.config import AdapterConfig
from emu.models.language_model import LanguageModel


def add_adapter(language: LanguageModel, config: AdapterConfig) -> None:
    """Puts fresh, trainable adapters on the attention projections of every layer.

    An untrained adapter changes nothing. The weight it sits on is frozen and is then called
    `<projection>.base_layer.weight`; the rest of the model keeps its names and stays trainable.
    """
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


def merge_adapter(language: LanguageModel) -> None:
    """Folds the adapters into the weights they sit on; names and shapes become plain again."""
    for name, module in list(language.lm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(language.lm.get_submodule(parent), leaf, module.get_base_layer())
