"""Precomputed embeddings and patch tokens of the visual encoder, memory-mapped (format: `schemas/features.py`).

Opening the features of a shard reads the keys of its images; a row is read when it is asked for, from the pages that
hold it. At an address (`s3://…`) the file of a shard is read as a whole.
"""

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

from emu.data.dataset import Dataset, DatasetError
from emu.data.tars import Recent
from schemas.features import FeatureInfo, feature_info, features_spec, stamps
from schemas.manifest import ShardEntry
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
    columns: Mapping[str, tuple[np.ndarray, ...]]
    """Per record batch, views of the file: pooled `[num_images, E]`; tokens `[num_images, P * V]` and, for int8,
    scales `[num_images, P]` where there are any."""

    def row(self, name: str, number: int) -> np.ndarray:
        """The value of a column for one image."""
        batch = bisect_right(self.starts, number) - 1
        return self.columns[name][batch][number - self.starts[batch]]


class FeatureReader:
    """The features of images of a dataset, by shard, key and segment.

    Raises:
        DatasetError: if the dataset has no features, or features of an encoder with other weights than
            `weights_sha256` or of other `preprocessing`: a model that is trained on those would not fit its own
            encoder.
    """

    def __init__(self, dataset: Dataset, weights_sha256: str, preprocessing: str) -> None:
        self.dataset = dataset
        self.info = _checked_info(dataset, weights_sha256, preprocessing)
        self._open = Recent(NUM_OPEN, self._open_shard)

    def patches(self, shard: int, key: str, segments: Sequence[int]) -> Tensor:
        """The patch tokens `NPV` of the images in these segments of a sample.

        float16 or float32 as they are stored, float32 from int8. Raises `DatasetError` for features without patches.
        """
        if self.info.patches == "none":
            raise DatasetError(
                f"{self.dataset.address}: its features have no patch tokens; compute them with --patches "
                "float16, float32 or int8"
            )
        images = [self._tokens(*found) for found in self._rows(shard, key, segments)]
        if not images:
            return torch.empty(0, self.info.num_tokens, self.info.width)
        return torch.from_numpy(np.stack(images))

    def pooled(self, shard: int, key: str, segments: Sequence[int]) -> Tensor:
        """CLIP's embeddings `NE`, float32 and not normalised, of the images in these segments of a sample."""
        found = [opened.row("pooled", row) for opened, row in self._rows(shard, key, segments)]
        if not found:
            return torch.empty(0, self.info.pooled_width)
        return torch.from_numpy(np.stack(found)).float()

    def _rows(
        self, shard: int, key: str, segments: Sequence[int]
    ) -> list[tuple[OpenFeatures, int]]:
        opened = self._open[shard]
        try:
            return [(opened, opened.rows[key, segment]) for segment in segments]
        except KeyError as error:
            raise DatasetError(
                f"{self.dataset.address}: no features of image {error} in shard "
                f"{self.dataset.entries[shard].name}; run the precompute job again"
            ) from error

    def _tokens(self, opened: OpenFeatures, row: int) -> np.ndarray:
        tokens = opened.row("tokens", row).reshape(self.info.num_tokens, self.info.width)
        if self.info.patches != "int8":
            return tokens
        return tokens.astype(np.float32) * opened.row("scales", row)[:, None]

    def _open_shard(self, number: int) -> OpenFeatures:
        table = self._read(self.dataset.entries[number])
        keys, segments = table["key"].to_pylist(), table["segment"].to_pylist()
        rows = {image: row for row, image in enumerate(zip(keys, segments, strict=True))}
        sizes = (len(chunk) for chunk in table["pooled"].chunks[:-1])
        columns = {
            name: tuple(_matrix(chunk) for chunk in table[name].chunks)
            for name in ("pooled", "tokens", "scales")
            if name in table.column_names
        }
        return OpenFeatures(rows, tuple(accumulate(sizes, initial=0)), columns)

    def _read(self, entry: ShardEntry) -> pa.Table:
        path = self.dataset.path(FEATURES, f"{entry.name}.arrow")
        try:
            if self.dataset.is_local:
                table = pa.ipc.open_file(pa.memory_map(path)).read_all()
            else:
                table = pa.ipc.open_file(pa.BufferReader(self.dataset.read(path))).read_all()
            checked = check_table(table, features_spec(self.info))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}: the manifest names features, but this file is missing; run the precompute "
                "job again"
            ) from error
        except (SchemaError, pa.ArrowInvalid) as error:
            raise DatasetError(f"{path}: {error}") from error
        if not stamps(self.info, entry.sha256).items() <= (table.schema.metadata or {}).items():
            raise DatasetError(
                f"{path}: of another encoder than the manifest names, or of another {entry.name}.tar; run the "
                "precompute job again"
            )
        return checked


def _checked_info(dataset: Dataset, weights_sha256: str, preprocessing: str) -> FeatureInfo:
    described: Mapping[str, Any] | None = dataset.manifest.features
    if described is None:
        raise DatasetError(
            f"{dataset.address}: the dataset has no features; run emu features on it, "
            "or train without --use-features"
        )
    try:
        info = feature_info(described, dataset.address)
    except SchemaError as error:
        raise DatasetError(str(error)) from error
    if info.weights_sha256 != weights_sha256:
        raise DatasetError(
            f"{dataset.address}: its features were made by '{info.encoder}' with weights "
            f"{info.weights_sha256[:12]}…, the encoder of this run has {weights_sha256[:12]}…; "
            "precompute them with the same weights (same recipe and seed, or the same --model)"
        )
    if info.preprocessing != preprocessing:
        raise DatasetError(
            f"{dataset.address}: its features were made from images prepared by '{info.preprocessing}', the "
            f"encoder of this run takes '{preprocessing}'; precompute them with this release"
        )
    return info


def _matrix(array: pa.FixedSizeListArray) -> np.ndarray:
    """The lists as rows of a matrix, a view of the file."""
    return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), -1)
