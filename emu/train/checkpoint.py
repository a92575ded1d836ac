"""Checkpoints: a directory a step, there as a whole or not at all.

    checkpoints/step-00000100/model.safetensors    weights
                              optimizer.pt         moments of AdamW, by weight name
                              state.json           step, place in the data, configuration of the run

They are written by `emu.weights.atomic_dir`, so a run killed while it writes leaves the checkpoints
before it untouched. Dropout is drawn from (seed, step, rank) and the
schedule from the step, so no generator and no scheduler has a state to keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from emu.weights.atomic_dir import new_directory, remove_directory, remove_unfinished

VERSION = 1
FOLDER = "checkpoints"
NAME = re.compile(r"^step-(\d{8,})$")
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used for this run; says what differs."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, place in the data, what it has seen, and its configuration."""

    step: int
    data: Mapping[str, Any]
    counts: Mapping[str, int]
    config: Mapping[str, Any]


def save_checkpoint(
    out: Path, model: nn.Module, optimizer: Optimizer, progress: Progress, keep: int = 2
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`; returns its directory."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    final = folder / f"step-{progress.step:08d}"
    if final.is_dir():
        return final
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state = {"version": VERSION, "step": progress.step}
    state |= {"data": dict(progress.data), "counts": dict(progress.counts)}
    state |= {"config": dict(progress.config)}
    with new_directory(final, is_replaceable=lambda folder: False) as new:
        save_file(weights, new / WEIGHTS)
        torch.save(named_moments(optimizer), new / OPTIMIZER)
        (new / STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    keep_newest(out, keep)
    return final


def keep_newest(out: Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and what killed writers left."""
    remove_unfinished(out / FOLDER)
    for old in checkpoints(out)[:-keep]:
        remove_directory(old)


def checkpoints(out: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    folder = out / FOLDER
    found = [path for path in folder.glob("step-*") if NAME.match(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def read_progress(checkpoint: Path) -> Progress:
    """Where the run of a checkpoint stood; raises `CheckpointError` for another version."""
    state = json.loads((checkpoint / STATE).read_text())
    if state["version"] != VERSION:
        raise CheckpointError(
            f"{checkpoint}: version {state['version']}, this release reads {VERSION}"
        )
    return Progress(state["step"], state["data"], state["counts"], state["config"])


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put weights and moments back, exactly; every key has to be there and to fit."""
    device = next(model.parameters()).device
    model.load_state_dict(load_file(checkpoint / WEIGHTS, device=str(device)))
    moments = torch.load(checkpoint / OPTIMIZER, map_location=device, weights_only=True)
    load_named_moments(optimizer, moments)


def check_same_run(then: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise `CheckpointError` naming what a resumed run would do differently."""
    before, after = _flat(then), _flat(now)
    names = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
    if names:
        shown = "; ".join(f"{n}: then {before.get(n)!r}, now {after.get(n)!r}" for n in names[:5])
        raise CheckpointError(
            f"{where}: the run there has another configuration: {shown}. Give the same options to go "
            "on with it, or another --out to begin a new run"
        )


def named_moments(optimizer: Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """The state of an optimizer by weight name, independent of how weights are grouped."""
    return {
        name: dict(optimizer.state[weight])
        for group in optimizer.param_groups
        for name, weight in zip(group["weight_names"], group["params"], strict=True)
        if weight in optimizer.state
    }


def load_named_moments(
    optimizer: Optimizer, moments: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Put back what `named_moments` took; a weight that has none had no gradient so far."""
    weights = {
        name: weight
        for group in optimizer.param_groups
        for name, weight in zip(group["weight_names"], group["params"], strict=True)
    }
    unknown = sorted(set(moments) - set(weights))
    if unknown:
        raise CheckpointError(f"the optimizer has no weight named {unknown[:3]}")
    for name, state in moments.items():
        optimizer.state[weights[name]] = dict(state)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[prefix + name] = inner
    return flat
