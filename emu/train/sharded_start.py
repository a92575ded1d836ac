"""A sharded model from the meta device: it is cut first, and then filled weight by weight.

Every rank reads or initialises one weight at a time as a whole, in the same order, and keeps its part; so also where
a model gets instruction tokens or an adapter that it was pretrained without. The values are those of
`emu.train.start.start_model` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from emu.config import EmuConfig
from emu.models.emu import VOCABULARY, Emu, grown, initial_values, instruct_words
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.start import LANGUAGE, TOWER, check_start, initial_adapter, set_trained
from emu.weights.layout import TOKENIZER, load_config
from emu.weights.store import read_weights

Weights = Iterator[tuple[str, Tensor]]


def start_sharded(
    config: EmuConfig,
    train: TrainConfig,
    init: str | None,
    device: torch.device,
    shard: Callable[[Emu], nn.Module],
    vision_weights: str | None = None,
    language_weights: str | None = None,
) -> Emu:
    """The model of a run in training mode, sharded by `shard`, which gives the module that is called in a step.

    Raises what `start_model` raises.
    """
    check_start(init, vision_weights, language_weights)
    with torch.device("meta"):
        model = Emu(config)
    set_trained(model, train)
    shard(model).to_empty(device=device)
    half = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
    model.visual.fill_buffers(device, half)
    if init is not None:
        fill(model, _extended(model, train.seed, Path(init)))
        return model
    fill(model, _parts(model, train.seed, vision_weights, language_weights))
    return model


@torch.no_grad()
def fill(model: nn.Module, weights: Weights) -> None:
    """Give every weight its value, on each rank its part. Raises ValueError naming what does not fit."""
    wanted: Mapping[str, Tensor] = model.state_dict()
    filled: set[str] = set()
    problems: list[str] = []
    for name, value in weights:
        filled.add(name)
        weight = wanted.get(name)
        if weight is None:
            problems.append(f"unexpected {name}")
        elif weight.shape != value.shape:
            problems.append(f"{name} has shape {tuple(value.shape)}, needs {tuple(weight.shape)}")
        else:
            _place(weight, value)
    problems += [f"missing {name}" for name in wanted if name not in filled]
    if problems:
        raise ValueError("the weights do not fit the configuration: " + "; ".join(problems))


def _place(weight: Tensor, value: Tensor) -> None:
    value = value.to(weight.device, weight.dtype)
    if isinstance(weight, DTensor):
        # without a source rank nothing is sent: each has the whole value
        mine = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.to_local().copy_(mine.to_local())
    else:
        weight.copy_(value)


def _extended(model: Emu, seed: int, init: Path) -> Weights:
    """The weights of a folder under the names of `model`, and those of what the folder lacks and `model` has."""
    stored, config = load_config(init), model.config
    words: list[list[int]] = []
    if config.instruct and not stored.instruct:
        words = instruct_words(EmuTokenizer.load(init / TOKENIZER))
    wanted = model.state_dict().keys()
    for name, value in read_weights(init):
        below = name.replace(".weight", ".base_layer.weight")  # under a new adapter
        chosen = name if name in wanted or below not in wanted else below
        yield chosen, grown(value.float(), words) if words and name in VOCABULARY else value
    if config.adapter is not None and stored.adapter is None:
        yield from initial_adapter(model, seed)


def _parts(
    model: Emu, seed: int, vision_weights: str | None, language_weights: str | None
) -> Weights:
    """Initial values in the order of the names, except for the parts that are read, which come after."""
    read = () if language_weights is None else (LANGUAGE,)
    generator = Generator().manual_seed(seed)
    for name, value in initial_values(model, model.config, generator, read):
        if vision_weights is None or not name.startswith(TOWER):
            yield name, value
    if language_weights is not None:
        from emu.weights.llama import llama_tensors

        yield from llama_tensors(model.config, language_weights)
    if vision_weights is not None:
        from emu.weights.open_clip import open_clip_tensors

        for name, value in open_clip_tensors(vision_weights):
            yield TOWER + name, value
