"""A model directory: its files, its configuration and the index of its weights. No torch here.

| file                                                          | content                                |
|---------------------------------------------------------------|----------------------------------------|
| `config.json`                                                 | sizes and choices; written last        |
| `model.safetensors`, or shards and `model.safetensors.index.json` | the weights                        |
| `tokenizer.model`, `tokenizer_config.json`                    | the tokenizer; the second for transformers |
| `generation_config.json`                                      | defaults of generation, for transformers |
| `decoder/`                                                    | optional, the visual decoder           |

What file names and headers tell is checked before a server or a run is started: a replica that cannot load its
model is restarted several times before the application fails.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emu.config import INSTRUCT_TOKENS, PRETRAIN_TOKENS, EmuConfig
from emu.tokenizer import BASE_TOKENS, EmuTokenizer
from emu.weights.atomic_dir import restore
from schemas import strict_json

CONFIG, TOKENIZER, DECODER = "config.json", "tokenizer.model", "decoder"
WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
EXPECTED = (
    f"a model is a folder with {CONFIG}, {WEIGHTS} (or its shards and their index) and {TOKENIZER}, "
    "as jobs/train_emu.py writes it into OUT/model and jobs/convert_checkpoint.py into OUT"
)


class WeightsError(ValueError):
    """Files that hold no usable weights; says which file and why."""


def read_config(directory: Path) -> EmuConfig:
    """The configuration of a model directory whose files are all present and not truncated.

    Raises FileNotFoundError naming an absent file, ValueError naming a broken one.
    """
    config = load_config(directory)
    if not (directory / TOKENIZER).is_file():
        raise FileNotFoundError(f"no model at {directory}: {TOKENIZER} is absent")
    weight_files(directory)
    return config


def weight_files(directory: Path) -> list[Path]:
    """The files with the weights of a model directory: one, or the shards of its index.

    Raises FileNotFoundError for an absent file, WeightsError for a truncated one, and where the shards hold other
    tensors than the index says.
    """
    index = read_index(directory / INDEX) if (directory / INDEX).is_file() else None
    files = [directory / WEIGHTS] if index is None else index.files
    names = {file.name: _tensor_names(file) for file in files}
    if index is not None:
        index.check(names)
    return files


@dataclass(frozen=True)
class WeightIndex:
    """The index of sharded weights: tensor name to the name of the file that holds it."""

    path: Path
    file_of: Mapping[str, str]

    @property
    def files(self) -> list[Path]:
        """The shards, in the order of their names."""
        return [self.path.parent / name for name in sorted(set(self.file_of.values()))]

    def check(self, names: Mapping[str, Collection[str]]) -> None:
        """Raises WeightsError where the tensor names of the shards, by file name, are not those of the index.

        A tensor that an older shard still holds is such a difference: it must not replace the one that is meant.
        """
        problems = [
            f"{name} is not in {file}"
            for name, file in self.file_of.items()
            if name not in names.get(file, ())
        ]
        problems += [
            f"{name} is in {file}, where the index has "
            + (self.file_of.get(name) or "no such name")
            for file, found in names.items()
            for name in found
            if self.file_of.get(name) != file
        ]
        if problems:
            raise WeightsError(
                f"{self.path}: the index and its shards differ: {'; '.join(problems)}"
            )


def read_index(path: Path) -> WeightIndex:
    """The index at `path` (`….index.json` of safetensors or PyTorch files) whose shards are all present.

    Raises WeightsError for what is no index and for shards outside its folder, FileNotFoundError naming shards
    that are absent.
    """
    try:
        values = strict_json.loads(path.read_bytes())
        file_of = values["weight_map"]
        if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
            raise TypeError("weight_map is no object of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is no index of weights ('weight_map': tensor name to file name): {error!r}"
        ) from error
    files = sorted(set(file_of.values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise WeightsError(f"{path} names shards outside its folder: {outside}")
    absent = [name for name in files if not (path.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{path} names shards that are absent: {absent}")
    return WeightIndex(path, file_of)


def _tensor_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file.parent}: {file.name} is absent")
    try:
        with safe_open(file, framework="np") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is broken ({error}); was it copied to its end? it has {file.stat().st_size:,} bytes"
        ) from error


def load_config(directory: str | Path) -> EmuConfig:
    """The configuration of a model directory.

    Raises FileNotFoundError where there is no model, with what was found instead and what a model consists of, and
    ValueError naming the file for a configuration that cannot be read.
    """
    for folder in (Path(directory), Path(directory) / DECODER):
        restore(folder)
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no model at {directory}: {_found(Path(directory))}; {EXPECTED}")
    try:
        return EmuConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:  # UnicodeDecodeError included
        raise ValueError(f"{path}: {error}") from error


def _found(directory: Path) -> str:
    """What is at a path where a model should be, and where the model may be instead."""
    if directory.is_file():
        return "it is a file"
    if not directory.is_dir():
        return "there is no such folder"
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    if "model" in inner:
        return f"{CONFIG} is absent, but there is a model in {directory / 'model'}"
    if (directory / "state.json").is_file():
        return f"{CONFIG} is absent; it is a checkpoint, from which its run resumes"
    if (directory / "checkpoints").is_dir():
        return f"{CONFIG} is absent; it is a run that has not finished"
    return f"{CONFIG} is absent"


def write_generation_config(directory: Path, config: EmuConfig) -> None:
    """Writes the special ids and the five beams of the released evaluations in the form of transformers."""
    special = config.special
    _write(
        directory / GENERATION_CONFIG,
        {
            "bos_token_id": special.bos,
            "eos_token_id": special.eos,
            "pad_token_id": special.pad,
            "do_sample": False,
            "num_beams": 5,
        },
    )


def write_tokenizer(directory: Path, tokenizer: EmuTokenizer, max_positions: int) -> None:
    """Writes the sentencepiece model, and for transformers the class and the added tokens.

    `EmuTokenizer` needs only the model. Since 4.32 transformers segments prompts with special tokens differently from
    the released version; the ids of plain texts and of the special tokens are the same.
    """
    tokenizer.save(directory / TOKENIZER)
    added = INSTRUCT_TOKENS if tokenizer.instruct else PRETRAIN_TOKENS
    ids = dict(enumerate(BASE_TOKENS)) | dict(enumerate(added, tokenizer.num_pieces))
    unk, bos, eos = BASE_TOKENS
    _write(
        directory / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": True,
            "add_eos_token": False,
            "unk_token": unk,
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": added[0],
            "model_max_length": max_positions,
            "padding_side": "right",
            "added_tokens_decoder": {str(i): _token(text) for i, text in ids.items()},
        },
    )


def _token(text: str) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, "special": True} | plain


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
