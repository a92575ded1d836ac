"""Whether the files of a model are whole, looked at before anything is started (no torch here).

A replica that cannot load its model is started again several times before the application fails; what
can be known from names and headers is better said at once.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from emu.config import EmuConfig
from emu.models.config_file import CONFIG, load_config

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
