"""LoRA adapters on the language model (Emu-I), through peft.

peft is imported where it is used: it takes more than a second, and most models have no adapter.
"""

from __future__ import annotations

from emu.config import AdapterConfig
from emu.models.language_model import LanguageModel

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
        weight.requires_grad_(name in trainable or LORA in name)


def merge_adapter(language: LanguageModel) -> None:
    """Folds the adapters into the weights they sit on, which become plain and trainable again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(language.lm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            merged = module.get_base_layer().requires_grad_(True)
            setattr(language.lm.get_submodule(parent), leaf, merged)
