"""Writes weights to files tensor by tensor, with one tensor in memory at a time.

The writers of safetensors and torch take all tensors at once. Both formats are simple enough to be streamed:
safetensors is a JSON header followed by the values; PyTorch's is an uncompressed zip of one pickle, which maps
tensors to storages, and the storages. The result is read by those libraries.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
ALIGNMENT = 64  # of storages inside a PyTorch file, so that a map of it holds aligned tensors
LOCAL_HEADER, ZIP64_EXTRA = 30, 20


@dataclass(frozen=True)
class TensorSpec:
    """The name, shape and dtype of a tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(
    folder: Path,
    stem: str,
    specs: Sequence[TensorSpec],
    tensors: Iterable[Tensor],
    shard_bytes: int,
) -> list[Path]:
    """Writes `STEM.safetensors`, or shards of at most `shard_bytes` with `STEM.safetensors.index.json`.

    Returns the files. `tensors` come in the order of `specs`. A tensor larger than a shard gets its own.
    """
    shards = split_into_shards(specs, stem, shard_bytes)
    file_of = {spec.name: name for name, shard in shards.items() for spec in shard}
    given = iter(tensors)
    for name, shard in shards.items():
        (folder / name).write_bytes(_header(shard))
    for spec in specs:
        with (folder / file_of[spec.name]).open("ab") as file:
            file.write(_values(spec, next(given)))
    assert next(given, None) is None, "more tensors than specs"
    if len(shards) > 1:
        _write_index(folder / f"{stem}.safetensors.index.json", shards)
    return [folder / name for name in shards]


def write_torch(path: Path, specs: Sequence[TensorSpec], tensors: Iterable[Tensor]) -> None:
    """Writes a state dict that `torch.load(path)` reads, releases before 2.0 included.

    `tensors` come in the order of `specs`.
    """
    top = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(f"{top}/data.pkl", _pickled(specs))
        archive.writestr(f"{top}/byteorder", b"little")
        given = iter(tensors)
        for number, spec in enumerate(specs):
            entry = zipfile.ZipInfo(f"{top}/data/{number}")
            start = archive.fp.tell() + LOCAL_HEADER + len(entry.filename) + ZIP64_EXTRA  # type: ignore[union-attr]
            entry.extra = _padding(-start % ALIGNMENT)
            with archive.open(entry, "w", force_zip64=True) as file:
                file.write(_values(spec, next(given)))
        assert next(given, None) is None, "more tensors than specs"
        archive.writestr(f"{top}/version", b"3\n")


def split_into_shards(
    specs: Sequence[TensorSpec], stem: str, shard_bytes: int
) -> dict[str, list[TensorSpec]]:
    """File name to the tensors in it, in their order: shards of at most `shard_bytes`, as huggingface_hub splits."""
    if shard_bytes < 1:
        raise ValueError(f"a shard of {shard_bytes} bytes: give at least 1")
    by_name = {spec.name: spec for spec in specs}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda spec: spec.num_bytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=shard_bytes,
    )
    files = split.filename_to_tensors or {f"{stem}.safetensors": []}
    return {file: [by_name[name] for name in names] for file, names in files.items()}


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        end = start + spec.num_bytes
        entries[spec.name] = {
            "dtype": CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _values(spec: TensorSpec, tensor: Tensor) -> memoryview:
    assert tuple(tensor.shape) == spec.shape and tensor.dtype == spec.dtype, spec.name
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_index(path: Path, shards: dict[str, list[TensorSpec]]) -> None:
    index = {
        "metadata": {"total_size": sum(s.num_bytes for specs in shards.values() for s in specs)},
        "weight_map": {spec.name: file for file, specs in shards.items() for spec in specs},
    }
    path.write_text(json.dumps(index, indent=2) + "\n")


class _Storage:
    """The storage of one tensor in the pickle."""

    def __init__(self, number: int, spec: TensorSpec) -> None:
        self.number, self.spec = number, spec

    def described(self) -> tuple[Any, ...]:
        size = torch.Size(self.spec.shape).numel()
        return ("storage", STORAGES[self.spec.dtype], str(self.number), "cpu", size)


class _Stored:
    """A tensor as torch pickles it: a function that rebuilds it over its storage."""

    def __init__(self, number: int, spec: TensorSpec) -> None:
        self.storage = _Storage(number, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = torch.empty(0).__reduce_ex__(2)[0]  # the function that torch's own pickles name
        shape = self.storage.spec.shape
        return rebuild, (self.storage, 0, shape, tuple(_strides(shape)), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.described() if isinstance(obj, _Storage) else None


def _pickled(specs: Sequence[TensorSpec]) -> bytes:
    buffer = BytesIO()
    stored = OrderedDict((spec.name, _Stored(n, spec)) for n, spec in enumerate(specs))
    _Pickler(buffer, protocol=2).dump(stored)
    return buffer.getvalue()


def _strides(shape: tuple[int, ...]) -> Iterator[int]:
    for axis in range(len(shape)):
        yield torch.Size(shape[axis + 1 :]).numel()


def _padding(length: int) -> bytes:
    """An extra field of that many bytes, as torch pads: the letters FB, a length, filling."""
    if length < 4:
        length += ALIGNMENT
    return b"FB" + (length - 4).to_bytes(2, "little") + b"Z" * (length - 4)
