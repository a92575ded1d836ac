"""The registry of visual decoders, and what can be read of one from its folder. No torch, no diffusers here.

A decoder is one file with a class that meets `emu.decoders.base.VisualDecoder`, and one entry of `DECODERS`. The
model's configuration (`DecoderConfig.kind`) and the folder of a trained decoder (`decoder.json`) name its kind:

| field            | meaning                                             |
|------------------|-----------------------------------------------------|
| `kind`           | its name in `DECODERS`                              |
| `image_multiple` | what height and width of an image are multiples of  |

A folder without `decoder.json` holds a Stable Diffusion in the layout of diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu.weights.layout import restore
from schemas import strict_json

if TYPE_CHECKING:
    import torch

    from emu.decoders.base import DecoderConversion, VisualDecoder

DEFAULT_KIND = "stable_diffusion"
DECODER_FILE = "decoder.json"


@dataclass(frozen=True)
class DecoderEntry:
    """What is known of a kind of visual decoder without importing it."""

    implementation: str
    """`module:class` of a `VisualDecoder`."""
    schedulers: tuple[str, ...]
    """Names that `begin` accepts; the first is the default."""
    files: tuple[str, ...]
    """Files that every folder of this kind has."""
    read_image_multiple: Callable[[Path], int]
    """What height and width of an image must be multiples of, from a folder; raises ValueError for a broken one."""
    conversion: str | None = None
    """`module:function` of its `DecoderConversion`; None: jobs/convert_checkpoint.py refuses it."""


def write_decoder_file(folder: Path, kind: str, image_multiple: int) -> None:
    """Writes `decoder.json`: for the `save` of every kind but the default one."""
    values = {"kind": kind, "image_multiple": image_multiple}
    (folder / DECODER_FILE).write_text(json.dumps(values, indent=2) + "\n")


def read_multiple_of_file(folder: Path) -> int:
    """`image_multiple` of `decoder.json`; raises ValueError for a file without it."""
    value = _read_object(folder / DECODER_FILE).get("image_multiple")
    if type(value) is not int or value < 1:
        raise ValueError(f"{folder / DECODER_FILE}: image_multiple is {value!r}, give 1 or more")
    return value


def stable_diffusion_multiple(folder: Path) -> int:
    """The image multiple of a Stable Diffusion: autoencoder and U-Net halve the sides at each level but one."""
    num_halvings = 0
    for part in ("vae", "unet"):
        file = folder / part / "config.json"
        try:
            num_halvings += len(_read_object(file)["block_out_channels"]) - 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no configuration of a visual decoder: {error!r}; train it again, or remove the "
                f"folder {folder} to serve only text"
            ) from error
    return 2**num_halvings


DECODERS: dict[str, DecoderEntry] = {
    DEFAULT_KIND: DecoderEntry(
        implementation="emu.decoders.stable_diffusion:StableDiffusionDecoder",
        schedulers=("pndm", "ddim", "dpm++", "euler"),
        files=("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"),
        read_image_multiple=stable_diffusion_multiple,
        conversion="emu.decoders.conversion:plan_conversion",
    ),
    "pixel_diffusion": DecoderEntry(
        implementation="emu.decoders.pixel_diffusion:PixelDiffusionDecoder",
        schedulers=("ddim", "dpm++", "euler"),
        files=(
            "decoder.json",
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "conditions.safetensors",
        ),
        read_image_multiple=read_multiple_of_file,
    ),
}
"""Visual decoders by kind."""


def decoder_entry(kind: str) -> DecoderEntry:
    """The entry of a kind; raises ValueError naming those that exist."""
    if kind not in DECODERS:
        raise ValueError(f"no visual decoder {kind!r}; there are {sorted(DECODERS)}")
    return DECODERS[kind]


def kind_of(folder: Path) -> str:
    """The kind of the decoder in a folder; raises ValueError for a broken `decoder.json` or an unknown kind."""
    restore(folder)
    file = folder / DECODER_FILE
    if not file.is_file():
        return DEFAULT_KIND
    kind = _read_object(file).get("kind")
    if not isinstance(kind, str) or kind not in DECODERS:
        raise ValueError(f"{file}: kind is {kind!r}, give one of {sorted(DECODERS)}")
    return kind


def is_decoder(folder: Path) -> bool:
    """Whether a folder has the files of a visual decoder."""
    try:
        files = DECODERS[kind_of(folder)].files
    except ValueError:
        return False
    return all((folder / file).is_file() for file in files)


def read_image_multiple(folder: Path) -> int | None:
    """What height and width of an image must be multiples of; None where there is no visual decoder.

    Raises ValueError naming a file that is absent or broken.
    """
    restore(folder)
    return DECODERS[kind_of(folder)].read_image_multiple(folder) if folder.is_dir() else None


def decoder_class(kind: str) -> type[VisualDecoder]:
    """The class of a kind; imports its libraries. Raises ValueError for an unknown kind."""
    return _resolve(decoder_entry(kind).implementation)


def load_decoder(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VisualDecoder:
    """The visual decoder of a folder, of whatever kind, in evaluation mode; `dtype` None is float32.

    Raises as its `load` does, and ValueError for an unknown kind.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    return decoder_class(kind_of(folder)).load(folder, device, **options)


def plan_decoder_conversion(
    folder: Path, condition_width: int, released: bool = False, dtype: torch.dtype | None = None
) -> DecoderConversion:
    """What to write for the decoder in `folder`, with `released` in the form of the published code.

    Raises FileNotFoundError or ValueError where the folder does not fit, or its kind has no conversion.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no decoder at {folder}: no such folder")
    kind = kind_of(folder)
    path = DECODERS[kind].conversion
    if path is None:
        raise ValueError(
            f"{folder} holds a visual decoder of kind {kind!r}, which has no conversion; copy the folder instead"
        )
    return _resolve(path)(folder, condition_width, released, dtype)


def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _read_object(file: Path) -> dict[str, Any]:
    values = strict_json.loads(file.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds {type(values).__name__}, needed is an object")
    return values
