"""Whether the files of a model are whole, looked at before anything is started (no torch here).

A replica that cannot load its model is started again several times before the application fails; what
can be known from names and headers is better said at once.

The configuration of a model on disk, and what is said where there is none (no torch here).

The small files beside the weights that make a directory readable to the ecosystem's libraries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emu.config import INSTRUCT_TOKENS, PRETRAIN_TOKENS, EmuConfig
from emu.tokenizer import BASE_TOKENS, EmuTokenizer
from emu.weights.atomic_dir import restore

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.model"
INDEX = WEIGHTS + ".index.json"
DECODER, LEVELS = "decoder", "block_out_channels"


def read_config(directory: Path) -> EmuConfig:
    """The configuration of a model directory whose files are all there and not cut off.

    Raises FileNotFoundError naming an absent file, ValueError naming a broken one.
    """
    config = load_config(directory)
    for file in [directory / TOKENIZER, *_weight_files(directory)]:
        if not file.is_file():
            raise FileNotFoundError(f"no model at {directory}: {file.name} is absent")
        if file.suffix == ".safetensors":
            _check_header(file)
    read_picture_factor(directory / DECODER)
    return config


def read_picture_factor(folder: Path) -> int | None:
    """What the sides of a picture must be multiples of: the autoencoder and the U-Net halve them.

    None where there is no visual decoder. Raises ValueError naming a configuration that is absent or broken.
    """
    if not folder.is_dir():
        return None
    num_halvings = 0
    for part in ("vae", "unet"):
        file = folder / part / CONFIG
        try:
            num_halvings += len(json.loads(file.read_text())[LEVELS]) - 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no configuration of a visual decoder: {error!r}; train it again, or take the "
                f"folder {DECODER} away to serve text alone"
            ) from error
    return 2**num_halvings


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.is_file():
        return [directory / WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights: {error}") from error
    return [directory / name for name in names]


def _check_header(file: Path) -> None:
    try:
        with safe_open(file, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file} is broken ({error}); was it copied to its end? it has {file.stat().st_size:,} bytes"
        ) from error


CONFIG = "config.json"
EXPECTED = (
    f"a model is a folder with {CONFIG}, model.safetensors (or its pieces and their index) and tokenizer.model, "
    "as jobs/train_emu.py writes it into OUT/model and jobs/convert_checkpoint.py into OUT"
)


def load_config(directory: str | Path) -> EmuConfig:
    """The configuration of a model directory.

    Raises FileNotFoundError where there is no model, saying what is there and what a model is, and
    ValueError naming the file for a configuration that cannot be read.
    """
    for folder in (Path(directory), Path(directory) / DECODER):
        restore(folder)
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no model at {directory}: {_found(Path(directory))}; {EXPECTED}")
    try:
        return EmuConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:  # that it is no UTF-8, too
        raise ValueError(f"{path}: {error}") from error


def _found(directory: Path) -> str:
    """What is at a place where a model should be, and where the model may be instead."""
    if directory.is_file():
        return "it is a file"
    if not directory.is_dir():
        return "there is no such folder"
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    if "model" in inner:
        return f"{CONFIG} is absent, but there is a model in {directory / 'model'}"
    if (directory / "state.json").is_file():
        return (
            f"{CONFIG} is absent; it is a checkpoint, from which its run goes on when started again"
        )
    if (directory / "checkpoints").is_dir():
        return f"{CONFIG} is absent; it is a run that has not come to its end"
    return f"{CONFIG} is absent"


TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"


def write_generation_config(directory: Path, config: EmuConfig) -> None:
    """Writes the special ids and the five beams of all released runs, as transformers reads them."""
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
    """Writes the sentencepiece model and what tells transformers its class and its added tokens.

    `EmuTokenizer` needs the model alone. A current transformers splits prompts with special tokens in
    another way than the released one; ids of plain texts and of the special tokens are the same.
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
