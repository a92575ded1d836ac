"""Reads weights from files of any origin: what they contain, and the tensors one after the other.

`.safetensors` and PyTorch's `.bin`, `.pt`, `.pth`; one file, the shards of an index, or a folder. No code in a file
is ever executed: PyTorch files are read with `weights_only`. Files are memory-mapped and closed again after every
quarter of a gigabyte, so that the resident pages do not add up to the whole file.
"""

from __future__ import annotations

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

from emu.weights.layout import WeightIndex, WeightsError, read_index

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


@dataclass(frozen=True)
class TensorEntry:
    """Which file holds a tensor, under which name, and its shape and dtype."""

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
        """Reads names, shapes and dtypes, not the values.

        `path` is a file, an index (`….index.json`), or a folder. Raises FileNotFoundError where there are no
        weights, WeightsError naming the file that is damaged, that holds more than tensors, or that differs from
        the index, and the names that are in two files.
        """
        self.files, index = _find(Path(path))
        self.ignored: list[str] = []
        """Names of what is stored beside the weights in a file that wraps them."""
        self._loaded: dict[Path, Opened] = {}
        names: dict[str, list[str]] = {}
        found: dict[str, list[TensorEntry]] = {}
        for file in self.files:
            for entry in self._read_header(file):
                names.setdefault(file.name, []).append(entry.key)
                found.setdefault(entry.key, []).append(entry)
        if index is not None:
            index.check(names)
        doubled = [
            f"{n} in {', '.join(e.file.name for e in es)}" for n, es in found.items() if es[1:]
        ]
        if doubled:
            raise WeightsError(
                f"{path}: the same names in two files, give one file or an index: "
                + "; ".join(doubled)
            )
        entries = {name: one for name, (one,) in found.items()}
        prefix = f"{MODULE}."
        if entries and all(name.startswith(prefix) for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
        self.entries: Mapping[str, TensorEntry] = entries

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)

    def read(self, names: Sequence[str], batch_bytes: int = BATCH_BYTES) -> Iterator[Tensor]:
        """The tensors of these names in this order; each is to be used before the next is taken."""
        opened: dict[Path, Opened] = {}
        room = batch_bytes
        for name in names:
            entry = self.entries[name]
            if entry.num_bytes > room:
                opened, room = {}, batch_bytes  # a file is unmapped with its last tensor
            if entry.file not in opened:
                opened[entry.file] = self._open(entry.file)
            room -= entry.num_bytes
            yield opened[entry.file](entry.key)

    def _read_header(self, file: Path) -> Iterator[TensorEntry]:
        if file.suffix == SAFETENSORS:
            yield from _safetensors_entries(file)
            return
        tensors, ignored = _torch_tensors(file)
        self.ignored += ignored
        if not _is_zip(file):
            self._loaded[file] = (
                tensors.__getitem__
            )  # the format before PyTorch 1.6 cannot be mapped
        for name, tensor in tensors.items():
            yield TensorEntry(file, name, tuple(tensor.shape), tensor.dtype)

    def _open(self, file: Path) -> Opened:
        if file in self._loaded:
            return self._loaded[file]
        if file.suffix == SAFETENSORS:
            return safe_open(file, framework="pt").get_tensor
        return _torch_tensors(file)[0].__getitem__


def _find(path: Path) -> tuple[list[Path], WeightIndex | None]:
    """The files to read, and their index where there is one."""
    if path.name.endswith(INDEX) and path.is_file():
        index = read_index(path)
        return index.files, index
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
            index = read_index(indexes[0])
            return index.files, index
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


def _safetensors_entries(file: Path) -> Iterator[TensorEntry]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                header = tensors.get_slice(name)
                code = header.get_dtype()
                if code not in DTYPES:
                    raise WeightsError(f"{file}: {name} holds {code}, known are {sorted(DTYPES)}")
                yield TensorEntry(file, name, tuple(header.get_shape()), DTYPES[code])
    except SafetensorError as error:
        raise WeightsError(
            f"{file}: damaged, truncated or no safetensors file ({error})"
        ) from error


def _torch_tensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a PyTorch file, memory-mapped where its format allows it, and the names of what is beside them."""
    is_zip = _is_zip(file)
    if is_zip:
        _refuse_compressed(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise WeightsError(
            f"{file}: damaged, or holds more than tensors{what}. It is not read, because that could execute "
            "code; save only its state dict: torch.save(model.state_dict(), PATH)"
        ) from error
    except Exception as error:  # torch raises almost any exception for damaged files
        raise WeightsError(
            f"{file}: damaged, truncated or no PyTorch file ({_first_line(error)})"
        ) from error
    return _unwrapped(loaded, file)


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _refuse_compressed(file: Path) -> None:
    """A few bytes may decompress to terabytes; PyTorch itself never compresses."""
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [
                i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED
            ]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise WeightsError(f"{file}: damaged or truncated ({error})") from error
    if packed:
        raise WeightsError(
            f"{file}: {packed[0]!r} is compressed, which PyTorch never does with weights"
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
