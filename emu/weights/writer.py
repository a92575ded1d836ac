"""Weights to files, tensor by tensor: never more than one of them is held.

The writers of safetensors and torch take all tensors at once. Both forms are simple enough to be written
as a stream: safetensors is a JSON header and the values; PyTorch's is an uncompressed zip of one pickle
that says how tensors lie in storages, and the storages. What is written here is read by those libraries.
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
    """The name and the form of a tensor to write."""

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
    """Writes `STEM.safetensors`, or pieces of at most `shard_bytes` with `STEM.safetensors.index.json`.

    Returns the files. `tensors` come in the order of `specs`. A tensor larger than a piece gets its own.
    """
    shards = cut(specs, shard_bytes)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    given = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for spec in shard:
                file.write(_values(spec, next(given)))
    assert next(given, None) is None, "more tensors than specs"
    if len(shards) > 1:
        _write_index(
            folder / f"{stem}.safetensors.index.json", dict(zip(names, shards, strict=True))
        )
    return [folder / name for name in names]


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


def cut(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """The specs in pieces of at most `shard_bytes`, in their order."""
    if shard_bytes < 1:
        raise ValueError(f"a shard of {shard_bytes} bytes: give at least 1")
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


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
    """Stands for the storage of one tensor inside the pickle."""

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
    for place in range(len(shape)):
        yield torch.Size(shape[place + 1 :]).numel()


def _padding(length: int) -> bytes:
    """An extra field of that many bytes, as torch pads: the letters FB, a length, filling."""
    if length < 4:
        length += ALIGNMENT
    return b"FB" + (length - 4).to_bytes(2, "little") + b"Z" * (length - 4)
