"""LoRA adapters beside one model: rows of different adapters, and rows without one, go through the layers together.

The product with a weight is taken for all rows at once; each adapter adds its own two small products to its rows.

Shapes: T positions of all requests side by side, O outputs and K inputs of a projection, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emu.generate.int8 import has_int8_weights
from emu.generate.kv_cache import Project
from emu.generate.prefix import KEY_BYTES
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from emu.weights.adapter import read_adapter


@dataclass(frozen=True)
class Adapter:
    """An adapter on one model in memory."""

    name: str
    tokenizer: EmuTokenizer
    """That of the prompts it was tuned on: with `[USER]` and `[ASSISTANT]`."""
    key: bytes
    """Of its content: pages that it filled are shared by requests for the same adapter alone."""
    pairs: dict[nn.Module, tuple[nn.Linear, nn.Linear]]
    """For each projection that it sits on, the one to its rank and the one back, which includes the scale."""


def load_adapter(name: str, folder: str | Path, model: Emu, tokenizer: EmuTokenizer) -> Adapter:
    """The adapter in a folder in peft's layout (`emu train-instruct` writes one), on `model` and in its dtype.

    Raises ValueError where it does not fit, and for a model that has an unmerged adapter in itself.
    """
    if model.config.adapter is not None:
        raise ValueError(
            f"adapter {name!r} cannot be put on a model that has one already; merge that first "
            "(emu train-instruct --merge), or serve the model beneath"
        )
    if has_int8_weights(model.language):
        raise ValueError(f"adapter {name!r} cannot be put on int8 weights; load them as 'full'")
    weights = read_adapter(folder)
    own = model.ln_visual.weight
    pairs: dict[nn.Module, tuple[nn.Linear, nn.Linear]] = {}
    digest = blake2b(name.encode(), digest_size=KEY_BYTES)
    problems: list[str] = []
    for path, (down_RK, up_OR) in weights.pairs.items():
        target = _projection(model, path)
        if target is None or target.weight.shape != (len(up_OR), down_RK.shape[1]):
            shape = None if target is None else tuple(target.weight.shape)
            problems.append(
                f"{path} is for {(len(up_OR), down_RK.shape[1])}, the model has {shape}"
            )
            continue
        for part in (down_RK, up_OR):
            digest.update(part.float().contiguous().numpy().tobytes())
        scaled = (down_RK, up_OR * weights.scale)
        down, up = (_linear(part.to(own.device, own.dtype)) for part in scaled)
        pairs[target] = down, up
    if problems:
        raise ValueError(f"{folder}: the adapter does not fit the model: {'; '.join(problems)}")
    instructed = EmuTokenizer(tokenizer.model_bytes, instruct=True)
    return Adapter(name, instructed, digest.digest(), pairs)


@dataclass(frozen=True)
class AdaptedProjection:
    """The outputs of projections for rows of which some have an adapter (a `Project`)."""

    project: Project
    groups: Sequence[tuple[slice, Adapter]]
    """The rows of each adapter."""

    def __call__(self, states_TK: Tensor, linear: Any) -> Tensor:
        """The output `TO` of a projection."""
        outputs_TO = self.project(states_TK, linear)
        for rows, adapter in self.groups:
            pair = adapter.pairs.get(linear)
            if pair is not None:
                down, up = pair
                outputs_TO[rows] += self.project(self.project(states_TK[rows], down), up)
        return outputs_TO


def _projection(model: Emu, path: str) -> nn.Linear | None:
    try:
        found = model.language.lm.get_submodule(path)
    except AttributeError:
        return None
    return found if type(found) is nn.Linear else None


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear
