"""FeatureReader: precomputed outputs of the visual encoder, memory-mapped (`schemas/features.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from emu.data.dataset import Dataset, DatasetError, Recent
from schemas.features import FeatureInfo, feature_info, features_spec
from schemas.shard import FEATURES
from schemas.validation import SchemaError, check_table

NUM_OPEN = 128


@dataclass(frozen=True)
class OpenFeatures:
    """The features of one shard: the row of each image, and the columns."""

    rows: Mapping[tuple[str, int], int]
    tokens: np.ndarray
    """`[num_images, P * V]`, a view of the file."""
    scales: np.ndarray | None
    """`[num_images, P]` for int8, else None."""


class FeatureReader:
    """The patch tokens of images of a dataset, by shard, key and segment.

    Raises `DatasetError` where the dataset has no features, or where they were made by an encoder of
    other weights than `weights_sha256`: training on those would pair a model with inputs that it will
    never see again.
    """

    def __init__(self, dataset: Dataset, weights_sha256: str) -> None:
        self.dataset = dataset
        self.info = _checked_info(dataset, weights_sha256)
        self._open = Recent(NUM_OPEN, self._open_shard)

    def patches(self, shard: int, key: str, segments: Sequence[int]) -> Tensor:
        """The tokens `NPV` of the images in these segments of a sample; float16, or float32 from int8."""
        opened = self._open[shard]
        try:
            rows = [opened.rows[key, segment] for segment in segments]
        except KeyError as error:
            raise DatasetError(
                f"{self.dataset.address}: no features of image {error} in shard "
                f"{self.dataset.entries[shard].name}; run the precompute job again"
            ) from error
        shape = (len(rows), self.info.num_tokens, self.info.width)
        tokens = opened.tokens[rows].reshape(shape)
        if opened.scales is not None:
            tokens = tokens.astype(np.float32) * opened.scales[rows][:, :, None]
        return torch.from_numpy(tokens)

    def _open_shard(self, number: int) -> OpenFeatures:
        name = self.dataset.entries[number].name
        table = self._read(name)
        keys, segments = table["key"].to_pylist(), table["segment"].to_pylist()
        rows = {place: row for row, place in enumerate(zip(keys, segments, strict=True))}
        tokens = _matrix(table["tokens"])
        return OpenFeatures(
            rows, tokens, _matrix(table["scales"]) if self.info.storage == "int8" else None
        )

    def _read(self, name: str) -> pa.Table:
        path = self.dataset.path(FEATURES, f"{name}.arrow")
        try:
            if self.dataset.is_local:
                table = pa.ipc.open_file(pa.memory_map(path)).read_all()
            else:
                table = pa.ipc.open_file(pa.BufferReader(self.dataset.read(path))).read_all()
            return check_table(table, features_spec(self.info))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}: the manifest names features, but this file is missing; run the precompute "
                "job again"
            ) from error
        except (SchemaError, pa.ArrowInvalid) as error:
            raise DatasetError(f"{path}: {error}") from error


def _checked_info(dataset: Dataset, weights_sha256: str) -> FeatureInfo:
    described: Mapping[str, Any] | None = dataset.manifest.features
    if described is None:
        raise DatasetError(
            f"{dataset.address}: the dataset has no features; run jobs/precompute_features.py on it, "
            "or train without --use-features"
        )
    info = feature_info(described, dataset.address)
    if info.weights_sha256 != weights_sha256:
        raise DatasetError(
            f"{dataset.address}: its features were made by '{info.encoder}' with weights "
            f"{info.weights_sha256[:12]}…, the encoder of this run has {weights_sha256[:12]}…; "
            "precompute them with the same weights (same recipe and seed, or the same --init)"
        )
    return info


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size list column as a 2-D array, without a copy where it lies in one chunk."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    width = column.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), width)
