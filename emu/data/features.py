"""Precomputed patch tokens of the visual encoder, memory-mapped (format: `schemas/features.py`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from emu.data.dataset import Dataset, DatasetError, Recent
from schemas.features import FeatureInfo, feature_info, features_spec
from schemas.shard import FEATURES
from schemas.table_spec import check_table
from schemas.validation import SchemaError

NUM_OPEN = 128


@dataclass(frozen=True)
class OpenFeatures:
    """The features of one shard: the row of each image, and the record batches of the file."""

    rows: Mapping[tuple[str, int], int]
    starts: tuple[int, ...]
    """First row of each record batch."""
    tokens: tuple[np.ndarray, ...]
    """`[num_images, P * V]` per record batch, views of the file."""
    scales: tuple[np.ndarray, ...]
    """`[num_images, P]` per record batch for int8, otherwise empty."""

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The tokens of one image and, for int8, their scales."""
        batch = bisect_right(self.starts, number) - 1
        row = number - self.starts[batch]
        scales = self.scales[batch][row] if self.scales else None
        return self.tokens[batch][row], scales


class FeatureReader:
    """The patch tokens of images of a dataset, by shard, key and segment.

    Raises:
        DatasetError: if the dataset has no features, or features of an encoder with other weights than
            `weights_sha256`: a model that is trained on those would not fit its own encoder.
    """

    def __init__(self, dataset: Dataset, weights_sha256: str) -> None:
        self.dataset = dataset
        self.info = _checked_info(dataset, weights_sha256)
        self._open = Recent(NUM_OPEN, self._open_shard)

    def patches(self, shard: int, key: str, segments: Sequence[int]) -> Tensor:
        """The patch tokens `NPV` of the images in these segments of a sample; float16, or float32 from int8."""
        opened = self._open[shard]
        try:
            rows = [opened.rows[key, segment] for segment in segments]
        except KeyError as error:
            raise DatasetError(
                f"{self.dataset.address}: no features of image {error} in shard "
                f"{self.dataset.entries[shard].name}; run the precompute job again"
            ) from error
        images = [self._image(*opened.row(row)) for row in rows]
        if not images:
            return torch.empty(0, self.info.num_tokens, self.info.width)
        return torch.from_numpy(np.stack(images))

    def _image(self, tokens: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        image = tokens.reshape(self.info.num_tokens, self.info.width)
        return image if scales is None else image.astype(np.float32) * scales[:, None]

    def _open_shard(self, number: int) -> OpenFeatures:
        table = self._read(self.dataset.entries[number].name)
        keys, segments = table["key"].to_pylist(), table["segment"].to_pylist()
        rows = {image: row for row, image in enumerate(zip(keys, segments, strict=True))}
        chunks = table["tokens"].chunks
        starts = tuple(accumulate((len(chunk) for chunk in chunks[:-1]), initial=0))
        is_int8 = self.info.storage == "int8"
        scales = tuple(_matrix(chunk) for chunk in table["scales"].chunks) if is_int8 else ()
        return OpenFeatures(rows, starts, tuple(_matrix(chunk) for chunk in chunks), scales)

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


def _matrix(array: pa.FixedSizeListArray) -> np.ndarray:
    """The lists as rows of a matrix, a view of the file."""
    return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), -1)
