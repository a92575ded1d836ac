"""The weights that a run starts from: drawn from a seed, or read from a model directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from emu.config import EmuConfig
from emu.models.config_file import load_config
from emu.models.emu import Emu
from emu.models.init import init_weights
from emu.models.instruct_rows import add_instruct_tokens
from emu.models.llama_weights import LANGUAGE, load_llama
from emu.models.open_clip_weights import open_clip_tower
from emu.models.sidecars import TOKENIZER
from emu.models.store import build_model, check_weights, read_weights
from emu.models.visual_encoder import VisualEncoder
from emu.tokenizer import EmuTokenizer
from emu.train.adapter import train_new_adapter
from emu.train.config import TrainConfig

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
