"""Saves and loads whole models: configuration, safetensors (sharded with an index when large), tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from emu.config import EmuConfig
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from emu.weights.layout import (
    CONFIG,
    INDEX,
    TOKENIZER,
    load_config,
    weight_files,
)
from emu.weights.transformers_files import (
    write_card,
    write_generation_config,
    write_tokenizer,
)
from emu.weights.writer import TensorSpec, write_safetensors

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def save_model(
    directory: str | Path,
    model: Emu,
    tokenizer: str | Path | EmuTokenizer | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Writes `model` and, where given, its tokenizer (itself, or its file) into `directory`, over a model saved before.

    `config.json` is written last: without it a directory is no model. Weights are taken one at a time, sharded ones as
    wholes.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    for file in (*directory.glob("model*.safetensors"), directory / INDEX):
        file.unlink(missing_ok=True)
    state = model.state_dict()
    specs = [TensorSpec(name, tuple(w.shape), w.dtype) for name, w in state.items()]
    weights = (_whole(weight).cpu() for weight in state.values())
    write_safetensors(directory, "model", specs, weights, _num_bytes(max_shard_size))
    if tokenizer is not None:
        given = tokenizer if isinstance(tokenizer, EmuTokenizer) else EmuTokenizer.load(tokenizer)
        given = EmuTokenizer(given.model_bytes, model.config.instruct)
        write_tokenizer(directory, given, model.config)
    write_generation_config(directory, model.config)
    write_card(directory, model.config)
    (directory / CONFIG).write_text(model.config.to_json())


def load_model(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Emu, EmuTokenizer]:
    """The model of `directory` in evaluation mode, and its tokenizer.

    Raises FileNotFoundError for an absent file and ValueError for a configuration that is broken, or
    weights or a tokenizer that do not fit it, naming the file and what does not fit.
    """
    directory = Path(directory)
    config = load_config(directory)
    tokenizer = EmuTokenizer.load(directory / TOKENIZER, config.instruct)
    if len(tokenizer) != config.num_embeddings:
        raise ValueError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, "
            f"the configuration has {config.num_embeddings}"
        )
    return build_model(config, read_weights(directory), device, dtype), tokenizer


def build_model(
    config: EmuConfig,
    weights: Iterator[tuple[str, Tensor]],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Emu:
    """A model that holds exactly `weights`, in evaluation mode; no weight is initialised.

    Raises ValueError naming every key that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = Emu(config)
    wanted = _shapes(model)
    found: dict[str, tuple[int, ...]] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in weights:
        found[name] = tuple(tensor.shape)
        if wanted.get(name) == found[name]:
            state[name] = tensor.to(device, dtype)
    _refuse_misfits(wanted, found)
    model.load_state_dict(state, assign=True)
    model.visual.fill_buffers(device, dtype)
    assert not any(buffer.is_meta for buffer in model.buffers())
    return model.eval()


def read_weights(directory: str | Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model directory, one after the other, from one file or from its shards.

    Raises as `weight_files` does.
    """
    for tensors in _opened(Path(directory)):
        for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
            yield name, tensors.get_tensor(name)


def check_weights(config: EmuConfig, directory: str | Path) -> None:
    """Raises what `build_model` would for the weights of a directory; only their headers are read."""
    found = (
        (name, tuple(tensors.get_slice(name).get_shape()))
        for tensors in _opened(Path(directory))
        for name in tensors.keys()  # noqa: SIM118 (not a dictionary)
    )
    with torch.device("meta"):
        wanted = _shapes(Emu(config))
    _refuse_misfits(wanted, dict(found))


def _opened(directory: Path) -> Iterator[Any]:
    for file in weight_files(directory):
        with safe_open(file, framework="pt") as tensors:
            yield tensors


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _refuse_misfits(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {shape}, needs {wanted[name]}"
        for name, shape in found.items()
        if wanted.get(name, shape) != shape
    ]
    problems += [f"missing {name}" for name in wanted if name not in found]
    if problems:
        raise ValueError("the weights do not fit the configuration: " + "; ".join(problems))


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, dtypes, shapes and values, in the order of the names, as hex."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = _whole(state[name].detach()).cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _num_bytes(size: str) -> int:
    """The bytes of a size such as 5GB, or of a plain number."""
    number = size.upper().removesuffix("B")
    unit = number[-1:]
    if unit in UNITS:
        return int(float(number[:-1]) * UNITS[unit])
    return int(number)


def _whole(tensor: Tensor) -> Tensor:
    """The tensor on every rank; of one that is sharded, all ranks ask for it."""
    full = getattr(tensor, "full_tensor", None)  # a DTensor, whose import takes a second
    return tensor if full is None else full()
