"""Starts the language model from LLaMA's weights (paper section 3.2).

A folder in Hugging Face's layout: `config.json`, the weights as safetensors or PyTorch files, in one file or
in shards with their index, and `tokenizer.model`. The rows of the added tokens are the mean of LLaMA's rows, in the
embedding and in the output head, as in the released code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.config import EmuConfig, LanguageConfig
from emu.models.emu import Emu
from emu.weights.plan import ROTARY, Plan, check_rotary, model_shapes, plan_renaming
from emu.weights.reader import WeightFiles
from emu.weights.released_config import LLAMA, check_heads, read_section

LANGUAGE = "language.lm."
ROWS = ("model.embed_tokens.weight", "lm_head.weight")
SIZES = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size")
FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Where the weights are searched, in this order; other files of the folder are ignored."""
NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
)
WITHOUT_MEANING = ("_name_or_path", "max_sequence_length", "rope_parameters")


def llama_sizes(folder: str | Path) -> LanguageConfig:
    """The sizes in the `config.json` of a LLaMA's folder.

    Raises FileNotFoundError where there is none, ValueError for what is no LLaMA or asks for what this model
    does not do, such as shared key heads or another rotary base.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no LLaMA at {folder}: config.json is absent; give a folder in Hugging Face's form, with config.json, "
            f"{FILES[1]} or {FILES[3]} (or their shards) and tokenizer.model"
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        return _sizes(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def with_llama(config: EmuConfig, folder: str | Path) -> EmuConfig:
    """The configuration for the LLaMA in a folder, whose epsilon it takes over.

    Raises ValueError naming every size that differs.
    """
    ours, theirs = config.language, llama_sizes(folder)
    differing = [
        f"{name} is {getattr(theirs, name)}, needed is {getattr(ours, name)}"
        for name in SIZES
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if theirs.max_positions < ours.max_positions:
        differing.append(
            f"max_positions is {theirs.max_positions}, needed are {ours.max_positions}"
        )
    if differing:
        raise ValueError(
            f"the LLaMA in {folder} has other sizes: {'; '.join(differing)}. Give the recipe with the sizes of "
            "this LLaMA, and its own tokenizer"
        )
    return replace(config, language=replace(ours, rms_norm_eps=theirs.rms_norm_eps))


def check_llama(config: EmuConfig, folder: str | Path) -> tuple[WeightFiles, Plan]:
    """The files of a LLaMA, and which of their tensors becomes which weight; only headers are read.

    Raises as `with_llama` does, FileNotFoundError where there are no weights, and WeightsError naming every key
    that is missing, unexpected, misshapen or no floating number.
    """
    with_llama(config, folder)
    files = WeightFiles(_weights(Path(folder)))
    shapes = {
        name.removeprefix(LANGUAGE): shape
        for name, shape in model_shapes(replace(config, adapter=None)).items()
        if name.startswith(LANGUAGE)
    }
    for name in ROWS:
        shapes[name] = (config.language.vocab_size, *shapes[name][1:])
    table = {name: name for name in shapes}
    plan = plan_renaming(files, table, shapes, None, may_drop=lambda name: ROTARY in name)
    check_rotary(files, plan, config)
    return files, plan


@torch.no_grad()
def load_llama(model: Emu, folder: str | Path) -> None:
    """Loads a LLaMA's weights into the language model, tensor by tensor; the regression head is left as it is.

    Raises what `check_llama` does, before a weight is changed.
    """
    ours = model.state_dict()
    for name, tensor in llama_tensors(model.config, folder):
        ours[name].copy_(tensor)


def llama_tensors(config: EmuConfig, folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """The names in this model and the values of a LLaMA's weights, one after the other, with the rows of added tokens.

    Raises what `check_llama` does, before the first.
    """
    files, plan = check_llama(config, folder)
    for spec, tensor in zip(plan.specs, files.read(plan.sources), strict=True):
        if spec.name in ROWS:
            added = config.num_embeddings - len(tensor)
            mean = tensor.float().mean(0, keepdim=True).expand(added, -1)
            tensor = torch.cat((tensor.float(), mean))
        yield LANGUAGE + spec.name, tensor


def _sizes(values: Any) -> LanguageConfig:
    if not isinstance(values, Mapping):
        raise ValueError(f"holds {type(values).__name__}, needed is an object")
    kind = values.get("model_type")
    if kind != "llama":
        raise ValueError(f"model_type is {kind!r}, needed is 'llama'")
    absent = [name for name in NEEDED if name not in values]
    if absent:
        raise ValueError(f"lacks {absent}")
    given = {name: value for name, value in values.items() if name not in WITHOUT_MEANING}
    rotary = values.get("rope_parameters") or {}  # how transformers 5 writes base and scaling
    if rotary.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters is {rotary}, this model scales no positions")
    if "rope_theta" in rotary:
        given["rope_theta"] = rotary["rope_theta"]
    sizes = LanguageConfig(**read_section(LLAMA, {LLAMA.name: given}))
    check_heads(given, sizes)
    return sizes


def _weights(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no weights in {folder}; looked for {', '.join(FILES)}")
