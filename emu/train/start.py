"""The weights that a run starts from: drawn from a seed, or read from a model directory.

A LoRA adapter as all of a model that is trained (paper section 3.4).

A tokenizer for small recipes, learned from the texts of the dataset that they train on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from emu.config import AdapterConfig, EmuConfig
from emu.data.dataset import DatasetError, ShardReader
from emu.models.emu import Emu, add_instruct_tokens
from emu.models.init import init_weights
from emu.models.language_model import LORA, add_adapter
from emu.models.visual_encoder import VisualEncoder
from emu.tokenizer import EmuTokenizer, train_tokenizer
from emu.train.config import TrainConfig
from emu.weights.layout import TOKENIZER, load_config
from emu.weights.llama import LANGUAGE, load_llama
from emu.weights.open_clip import open_clip_tower
from emu.weights.store import build_model, check_weights, read_weights


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


MAX_SAMPLES = 20_000


def learned_tokenizer(data: str, path: Path, vocab_size: int) -> EmuTokenizer:
    """The tokenizer at `path`; where there is none, one of up to `vocab_size` pieces is learned.

    It sees the first 20,000 samples, which decide everything: the same dataset gives the same bytes.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        texts = dataset_texts(data)
        first = next(texts, None)
        if first is None:
            raise DatasetError(
                f"{data}: no sample has a text to learn a tokenizer from; give --tokenizer"
            )
        train_tokenizer(itertools.chain([first], texts), vocab_size, temporary)
        temporary.replace(path)
    return EmuTokenizer.load(path)


def dataset_texts(data: str) -> Iterator[str]:
    """The texts of the first samples of a dataset, without empty ones."""
    reader = ShardReader(data, seed=0, shuffle=False)
    for sample in itertools.islice(reader, min(MAX_SAMPLES, len(reader))):
        yield from (s.text for s in sample.segments if s.text and s.text.strip())


TOWER = "visual."


def start_model(
    config: EmuConfig,
    train: TrainConfig,
    init: str | Path | None,
    device: torch.device,
    vision_weights: str | None = None,
    language_weights: str | None = None,
) -> Emu:
    """The model of a run in training mode, with the visual encoder frozen where that is asked.

    `vision_weights`, a tag of open_clip or a checkpoint, replace what is drawn for the visual encoder;
    `language_weights`, the folder of a LLaMA, what is drawn for the language model but for its regression head.
    A model in `init` that was pretrained alone gets what instruction tuning adds, where `config` asks for it.
    """
    check_start(init, vision_weights, language_weights)
    if init is None:
        model = Emu(config)
        model.init_weights(train.seed, but=() if language_weights is None else (LANGUAGE,))
        if language_weights is not None:
            load_llama(model, language_weights)
        if vision_weights is not None:
            model.visual.load_open_clip(open_clip_tower(vision_weights))
        model.to(device)
    else:
        model = started_model(config, train.seed, Path(init), device)
    if train.freeze_vision:
        model.visual.requires_grad_(False)
    if train.recompute_activations:
        model.recompute_activations()
    return model.train()


def started_model(config: EmuConfig, seed: int, init: Path, device: torch.device) -> Emu:
    """The model of a directory, grown by the tokens of instructions and by a fresh adapter where it lacks them.

    An adapter that is added is all that is trained (paper section 3.4). Raises ValueError naming every weight
    that does not fit.
    """
    base = _as_it_is(config, init)
    model = build_model(base, read_weights(init), device)
    if config.instruct and not base.instruct:
        add_instruct_tokens(model, EmuTokenizer.load(init / TOKENIZER))
    if config.adapter is not None and base.adapter is None:
        train_new_adapter(model, config.adapter, seed)
    return model


def check_started(config: EmuConfig, init: str | Path) -> None:
    """Raises what `started_model` would, for weights of which only the heads are read."""
    check_weights(_as_it_is(config, Path(init)), init)


def _as_it_is(config: EmuConfig, init: Path) -> EmuConfig:
    """The configuration without what the model in `init` lacks and instruction tuning adds."""
    found = load_config(init)
    return replace(
        config,
        instruct=config.instruct and found.instruct,
        adapter=None if found.adapter is None else config.adapter,
    )


def start_tower(
    config: EmuConfig, seed: int, init: str | Path | None, vision_weights: str | None = None
) -> VisualEncoder:
    """The visual encoder that `start_model` gives for the same arguments, without the rest."""
    check_start(init, vision_weights)
    tower = VisualEncoder(config.vision)
    if vision_weights is not None:
        tower.load_open_clip(open_clip_tower(vision_weights))
    elif init is None:
        # The tower's weights are the first that a model draws, so alone it draws the same.
        alone = nn.ModuleDict({TOWER.rstrip("."): tower})
        init_weights(alone, config, torch.Generator().manual_seed(seed))
    else:
        tower.load_state_dict(dict(_tower_weights(init)))
    return tower.eval()


def check_start(
    init: str | Path | None, vision_weights: str | None, language_weights: str | None = None
) -> None:
    """Raises ValueError where a model to start from already brings what is given beside it."""
    given = {"vision_weights": vision_weights, "language_weights": language_weights}
    parts = {"vision_weights": "visual encoder", "language_weights": "language model"}
    for name, value in given.items():
        if init is not None and value is not None:
            raise ValueError(
                f"{name}={value}: the model in {init} has a {parts[name]}; give one of them"
            )


def _tower_weights(init: str | Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_weights(init):
        if name.startswith(TOWER):
            yield name.removeprefix(TOWER), tensor.float()
