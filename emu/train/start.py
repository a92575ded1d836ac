"""The weights that a run starts from: drawn from a seed, or read from a model directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from emu.config import EmuConfig
from emu.models.emu import Emu
from emu.models.init import init_weights
from emu.models.open_clip_weights import open_clip_tower
from emu.models.store import build_model, read_weights
from emu.models.visual_encoder import VisualEncoder
from emu.train.config import TrainConfig

TOWER = "visual."


def start_model(
    config: EmuConfig,
    train: TrainConfig,
    init: str | Path | None,
    device: torch.device,
    vision_weights: str | None = None,
) -> Emu:
    """The model of a run in training mode, with the visual encoder frozen where that is asked.

    `vision_weights`, a tag of open_clip or a checkpoint, replace what is drawn for the visual encoder.
    """
    check_vision_weights(init, vision_weights)
    if init is None:
        model = Emu(config)
        model.init_weights(train.seed)
        if vision_weights is not None:
            model.visual.load_open_clip(open_clip_tower(vision_weights))
        model.to(device)
    else:
        model = build_model(config, read_weights(init), device)
    if train.freeze_vision:
        model.visual.requires_grad_(False)
    if train.recompute_activations:
        model.recompute_activations()
    return model.train()


def start_tower(
    config: EmuConfig, seed: int, init: str | Path | None, vision_weights: str | None = None
) -> VisualEncoder:
    """The visual encoder that `start_model` gives for the same arguments, without the rest."""
    check_vision_weights(init, vision_weights)
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


def check_vision_weights(init: str | Path | None, vision_weights: str | None) -> None:
    """Raises ValueError where a model to start from already brings a visual encoder."""
    if init is not None and vision_weights is not None:
        raise ValueError(
            f"vision_weights={vision_weights}: the model in {init} has a visual encoder; give one of them"
        )


def _tower_weights(init: str | Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_weights(init):
        if name.startswith(TOWER):
            yield name.removeprefix(TOWER), tensor.float()
