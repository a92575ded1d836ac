"""Weights in files that others wrote: what is in them, and the tensors one after the other.

`.safetensors` and PyTorch's `.bin`, `.pt`, `.pth`; one file, the pieces of an index, or a folder. Nothing
of a file is ever run: PyTorch's are read as weights alone. Files are mapped, not read into memory, and let
go again after every quarter of a gigabyte, so that the pages they fill do not add up to the whole file.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SAFETENSORS, TORCH = ".safetensors", (".bin", ".pt", ".pth")
INDEX = ".index.json"
MODULE = "module"
BATCH_BYTES = 1 << 28
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
Opened = Callable[[str], Tensor]


class WeightsError(ValueError):
    """Files that hold no usable weights; says which file and why."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, and its form."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightFiles:
    """The tensors of some files by name, without the `module` that a training engine may wrap them in."""

    def __init__(self, path: str | Path) -> None:
        """Reads what the files hold, not the values.

        `path` is a file, an index (`….index.json`), or a folder. Raises FileNotFoundError where there are no
        weights, WeightsError naming the file that is damaged, that holds more than tensors, or the names
        that are in two files.
        """
        self.files, wanted = _find(Path(path))
        self.ignored: list[str] = []
        """What stands beside the weights in a file that wraps them, by name."""
        self._whole: dict[Path, Opened] = {}
        found: dict[str, list[Place]] = {}
        for file in self.files:
            for place in self._look(file):
                found.setdefault(place.key, []).append(place)
        _check_index(wanted, found)
        doubled = [
            f"{n} in {', '.join(p.file.name for p in ps)}" for n, ps in found.items() if ps[1:]
        ]
        if doubled:
            raise WeightsError(
                f"{path}: the same names in two files, give one file or an index: "
                + "; ".join(doubled)
            )
        places = {name: one for name, (one,) in found.items()}
        prefix = f"{MODULE}."
        if places and all(name.startswith(prefix) for name in places):
            places = {name.removeprefix(prefix): place for name, place in places.items()}
        self.places: Mapping[str, Place] = places

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)

    def read(self, names: Sequence[str], batch_bytes: int = BATCH_BYTES) -> Iterator[Tensor]:
        """The tensors of these names in this order; each is to be used before the next is taken."""
        opened: dict[Path, Opened] = {}
        room = batch_bytes
        for name in names:
            place = self.places[name]
            if place.num_bytes > room:
                opened, room = {}, batch_bytes  # the maps go with their last tensor
            if place.file not in opened:
                opened[place.file] = self._open(place.file)
            room -= place.num_bytes
            yield opened[place.file](place.key)

    def _look(self, file: Path) -> Iterator[Place]:
        if file.suffix == SAFETENSORS:
            yield from _safetensors_places(file)
            return
        tensors, ignored = _torch_tensors(file)
        self.ignored += ignored
        if not _is_zip(file):
            self._whole[file] = tensors.__getitem__  # the form before 2020 cannot be mapped
        for name, tensor in tensors.items():
            yield Place(file, name, tuple(tensor.shape), tensor.dtype)

    def _open(self, file: Path) -> Opened:
        if file in self._whole:
            return self._whole[file]
        if file.suffix == SAFETENSORS:
            return safe_open(file, framework="pt").get_tensor
        return _torch_tensors(file)[0].__getitem__


def _find(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files to read and, from an index, which name should be in which of them."""
    if path.name.endswith(INDEX) and path.is_file():
        return _pieces(path)
    if path.is_file():
        if path.suffix not in (SAFETENSORS, *TORCH):
            known = ", ".join((SAFETENSORS, *TORCH, INDEX))
            raise WeightsError(f"{path}: weights end in {known}")
        return [path], None
    if not path.is_dir():
        raise FileNotFoundError(f"no weights at {path}: neither a file nor a folder")
    for ending in (SAFETENSORS + INDEX, INDEX):
        indexes = sorted(path.glob(f"*{ending}"))
        if len(indexes) > 1:
            raise WeightsError(f"{path} has {[i.name for i in indexes]}: give one of them")
        if indexes:
            return _pieces(indexes[0])
    files = _weight_files(path)
    if not files:
        inside = sorted(sub.name for sub in path.iterdir() if sub.is_dir() and _weight_files(sub))
        hint = f"; there are some in its folders {inside}, give one of them" if inside else ""
        raise FileNotFoundError(
            f"no weights in {path}: no {SAFETENSORS} or {', '.join(TORCH)}{hint}"
        )
    return files, None


def _weight_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.suffix in (SAFETENSORS, *TORCH))
    return sorted(path for path in files if path.is_file())


def _pieces(index: Path) -> tuple[list[Path], dict[str, str]]:
    try:
        wanted = json.loads(index.read_text())["weight_map"]
        assert isinstance(wanted, dict) and all(isinstance(name, str) for name in wanted.values())
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise WeightsError(f"{index}: no index of weights ('weight_map': name to file)") from error
    names = sorted(set(wanted.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise WeightsError(f"{index}: pieces outside its folder: {outside}")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{index}: pieces that are not there: {absent}")
    return [index.parent / name for name in names], wanted


def _check_index(wanted: Mapping[str, str] | None, found: Mapping[str, list[Place]]) -> None:
    if wanted is None:
        return
    problems = [
        f"{name} is not in {file}"
        for name, file in wanted.items()
        if file not in [place.file.name for place in found.get(name, [])]
    ]
    problems += [f"{n} is in {ps[0].file.name} alone" for n, ps in found.items() if n not in wanted]
    if problems:
        raise WeightsError("the index and its pieces differ: " + "; ".join(problems))


def _safetensors_places(file: Path) -> Iterator[Place]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                form = tensors.get_slice(name)
                code = form.get_dtype()
                if code not in DTYPES:
                    raise WeightsError(f"{file}: {name} holds {code}, known are {sorted(DTYPES)}")
                yield Place(file, name, tuple(form.get_shape()), DTYPES[code])
    except SafetensorError as error:
        raise WeightsError(
            f"{file}: damaged, truncated or no safetensors file ({error})"
        ) from error


def _torch_tensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a PyTorch file, mapped where its form allows it, and what stands beside them."""
    is_zip = _is_zip(file)
    if is_zip:
        _refuse_compressed(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise WeightsError(
            f"{file}: damaged, or holds more than tensors{what}. It is not read, because that could run "
            "code; save its state dict alone: torch.save(model.state_dict(), PATH)"
        ) from error
    except Exception as error:  # torch raises nearly anything on damaged files
        raise WeightsError(
            f"{file}: damaged, truncated or no PyTorch file ({_first_line(error)})"
        ) from error
    return _unwrapped(loaded, file)


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _refuse_compressed(file: Path) -> None:
    """A few bytes may unpack to terabytes; PyTorch itself never compresses."""
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [
                i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED
            ]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise WeightsError(f"{file}: damaged or truncated ({error})") from error
    if packed:
        raise WeightsError(
            f"{file}: {packed[0]!r} is compressed, which weights in PyTorch's form never are"
        )


def _unwrapped(loaded: Any, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    ignored: list[str] = []
    if isinstance(loaded, Mapping) and isinstance(loaded.get(MODULE), Mapping):
        ignored = [str(name) for name in loaded if name != MODULE]
        loaded = loaded[MODULE]
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{file}: holds a {type(loaded).__name__}, needed are tensors by name, at the top or under "
            f"{MODULE!r}"
        )
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{file}: {name!r} holds {type(value).__name__}, needed are tensors by name, at the top "
                f"or under {MODULE!r}"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise WeightsError(
                f"{file}: {name} is no plain tensor (sparse, quantised or without values)"
            )
    return dict(loaded), ignored


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
