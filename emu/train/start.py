"""The model that a run starts from: initialised from a seed, assembled from pretrained parts, or read from a folder.

Also the two things that such a start may add: a LoRA adapter as the only trained part (paper section 3.4), and, for
small recipes, a tokenizer trained on the texts of the dataset.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from emu.config import AdapterConfig, EmuConfig
from emu.data.dataset import DatasetError, ShardReader
from emu.models.emu import Emu, add_instruct_tokens, init_weights
from emu.models.language_model import LORA, add_adapter
from emu.models.visual import VisualEncoder
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer, train_tokenizer
from emu.train.compiled import compile_layers
from emu.weights.layout import TOKENIZER, load_config
from emu.weights.store import build_model, check_weights, read_weights

LANGUAGE, TOWER = "language.lm.", "visual."
MAX_SAMPLES = 20_000
"""Samples that a tokenizer is trained on, at most."""


def start_model(
    config: EmuConfig,
    train: TrainConfig,
    init: str | Path | None,
    device: torch.device,
    vision_weights: str | None = None,
    language_weights: str | None = None,
) -> Emu:
    """The model of a run in training mode, with the visual encoder frozen if `train` asks for it.

    Of a model with an adapter only that is trained; visual encoder and Causal Former are then in evaluation mode, so
    that images look as they do at serving.

    Args:
        init: a model folder; None initialises the weights randomly from `train.seed`. A model that was pretrained
            without instruction tokens or adapter gets those that `config` asks for.
        vision_weights: a pretrained tag of open_clip or a CLIP checkpoint for the visual encoder.
        language_weights: the folder of a LLaMA for the language model, except its regression head.

    Raises:
        ValueError: if `init` is given together with weights of a part, and for weights that do not fit `config`.
    """
    check_start(init, vision_weights, language_weights)
    if init is None:
        model = Emu(config)
        model.init_weights(train.seed, but=() if language_weights is None else (LANGUAGE,))
        if language_weights is not None:
            from emu.weights.llama import load_llama

            load_llama(model, language_weights)
        if vision_weights is not None:
            model.visual.load_open_clip(_open_clip_tower(vision_weights))
        model.to(device)
    else:
        model = _extended_model(config, train.seed, Path(init), device)
    set_trained(model, train)
    return model


def set_trained(model: Emu, train: TrainConfig) -> None:
    """Put a model into training mode, with the parts frozen that a run does not train."""
    if train.freeze_vision:
        model.visual.requires_grad_(False)
    if train.recompute_activations:
        model.recompute_activations()
    model.train()
    if model.config.adapter is not None:
        train_adapter_alone(model)
        model.visual.eval()
        model.former.eval()
    if train.compile:
        compile_layers(model)


def start_tower(
    config: EmuConfig, seed: int, init: str | Path | None, vision_weights: str | None = None
) -> VisualEncoder:
    """The visual encoder that `start_model` gives for the same arguments, without the other parts."""
    check_start(init, vision_weights)
    tower = VisualEncoder(config.vision)
    if vision_weights is not None:
        tower.load_open_clip(_open_clip_tower(vision_weights))
    elif init is None:
        # The visual encoder is initialised first, so alone it takes the same numbers from the generator.
        alone = nn.ModuleDict({TOWER.rstrip("."): tower})
        init_weights(alone, config, torch.Generator().manual_seed(seed))
    else:
        weights = ((name, w) for name, w in read_weights(init) if name.startswith(TOWER))
        tower.load_state_dict({name.removeprefix(TOWER): w.float() for name, w in weights})
    return tower.eval()


def check_start(
    init: str | Path | None, vision_weights: str | None, language_weights: str | None = None
) -> None:
    """Raise ValueError if weights of a part are given together with a model that already has that part."""
    given = {"vision_weights": vision_weights, "language_weights": language_weights}
    parts = {"vision_weights": "visual encoder", "language_weights": "language model"}
    for name, value in given.items():
        if init is not None and value is not None:
            raise ValueError(
                f"{name}={value}: the model in {init} has a {parts[name]}; give one of the two"
            )


def check_init(config: EmuConfig, init: str | Path) -> None:
    """Raise what `start_model` would for the weights in `init`, reading only their headers."""
    check_weights(_stored_config(config, Path(init)), init)


def train_new_adapter(model: Emu, config: AdapterConfig, seed: int) -> None:
    """Add a fresh LoRA adapter to a loaded model as its only trainable part (paper section 3.4).

    The weights below stay the same tensors, frozen. An untrained adapter does not change the output of the model;
    the same seed gives the same adapter. Raises ValueError for a model that already has one.
    """
    if model.config.adapter is not None:
        raise ValueError(
            "the model has an adapter: merge it with model.merge_adapter(), or continue its training with "
            "train_adapter_alone(model)"
        )
    add_adapter(model.language, config)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in initial_adapter(model, seed):
            weights[name].copy_(value)
    model.config = dataclasses.replace(model.config, adapter=config)
    train_adapter_alone(model)


def initial_adapter(model: Emu, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The names and initial values of the weights of an adapter, one after the other, in float32 on the CPU.

    The model may be on the meta device, and sharded.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if f"{LORA}A" in name:
            bound = 1 / math.sqrt(weight.shape[1])  # as peft does, but from our generator
            yield name, (torch.rand(weight.shape, generator=generator) * 2 - 1) * bound
        elif f"{LORA}B" in name:
            yield name, torch.zeros(weight.shape)


def train_adapter_alone(model: Emu) -> None:
    """Freeze everything except the adapter. Raises ValueError for a model without one."""
    if model.config.adapter is None:
        raise ValueError("the model has no adapter to train; train_new_adapter(model, …) adds one")
    for name, weight in model.named_parameters():
        weight.requires_grad_(LORA in name)


def learned_tokenizer(data: Sequence[str], path: Path, vocab_size: int) -> EmuTokenizer:
    """The tokenizer at `path`; if there is none, one of up to `vocab_size` pieces is trained and saved there.

    It is trained on the first 20,000 samples of the datasets in `data`, in order: the same give the same bytes.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        limit = MAX_SAMPLES // len(data)
        texts = itertools.chain.from_iterable(_dataset_texts(one, limit) for one in data)
        first = next(texts, None)
        if first is None:
            raise DatasetError(
                f"{', '.join(data)}: no sample has a text to train a tokenizer on; give --tokenizer"
            )
        train_tokenizer(itertools.chain([first], texts), vocab_size, temporary)
        temporary.replace(path)
    return EmuTokenizer.load(path)


def _extended_model(config: EmuConfig, seed: int, init: Path, device: torch.device) -> Emu:
    """The model of a folder, extended by the instruction tokens and the adapter that `config` adds to it.

    An added adapter is the only trainable part. Raises ValueError naming every weight that does not fit.
    """
    stored = _stored_config(config, init)
    model = build_model(stored, read_weights(init), device)
    if config.instruct and not stored.instruct:
        add_instruct_tokens(model, EmuTokenizer.load(init / TOKENIZER))
    if config.adapter is not None and stored.adapter is None:
        train_new_adapter(model, config.adapter, seed)
    return model


def _stored_config(config: EmuConfig, init: Path) -> EmuConfig:
    """`config` without the instruction tokens and the adapter that the model in `init` lacks."""
    found = load_config(init)
    return replace(
        config,
        instruct=config.instruct and found.instruct,
        adapter=None if found.adapter is None else config.adapter,
    )


def _open_clip_tower(weights: str) -> dict[str, Tensor]:
    from emu.weights.open_clip import open_clip_tower

    return open_clip_tower(weights)


def _dataset_texts(data: str, limit: int) -> Iterator[str]:
    """The non-empty texts of the first samples of a dataset."""
    reader = ShardReader(data, seed=0, shuffle=False)
    for sample in itertools.islice(reader, min(limit, len(reader))):
        yield from (s.text for s in sample.segments if s.text and s.text.strip())
