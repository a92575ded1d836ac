"""Features of a published dataset: the outputs of a visual encoder for every image, shard by shard.

The encoder is handed in as a function that is called on the worker, so that nothing here knows a model.
Each shard is committed on its own, and a shard whose features are there already (of the same encoder,
made from the same tar) is not done again; the manifest names the features last, when all are there.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipelines.core.storage import TEMPORARY, Storage, read_arrow_schema
from schemas.features import INFO_KEY, FeatureInfo, feature_info, features_schema
from schemas.manifest import MANIFEST_FILE, Manifest, ShardEntry, manifest_from_json
from schemas.sample import Sample, canonical_json
from schemas.shard import FEATURES, SHARDS, read_tar

SOURCE_KEY = b"emu.features.tar_sha256"

Encode = Callable[[Sequence[bytes]], np.ndarray]
"""Encoded images in, float32 tokens `[images, P, V]` out."""


class FeatureError(ValueError):
    """Features that cannot be written as asked; the message says what to do."""


@dataclass(frozen=True)
class ImagePlace:
    """An image of a shard: where it stands, and its encoded bytes."""

    key: str
    segment: int
    image: bytes


class ShardFeatures:
    """Writes the features of one shard at a time; made once on a worker, because it loads a model."""

    def __init__(
        self,
        dataset: str,
        info: FeatureInfo,
        make_encoder: Callable[[], Encode],
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise FeatureError(f"batch size {batch_size}; give at least 1 image")
        self.storage, self.info, self.batch_size = Storage(dataset), info, batch_size
        self.encode = make_encoder()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`{"shard": name, "tar_sha256": hash}` in; the same with `num_images` out."""
        name, source = row["shard"], row["tar_sha256"]
        num_images = self.storage.commit(
            features_path(name), lambda file: self._write(file, name, source)
        )
        return {**row, "num_images": num_images}

    def _write(self, file: BinaryIO, shard: str, source: str) -> int:
        schema = features_schema(self.info)
        schema = schema.with_metadata({**(schema.metadata or {}), SOURCE_KEY: source.encode()})
        num_images = 0
        with (
            self.storage.open(f"{SHARDS}/{shard}.tar") as tar,
            pa.ipc.new_file(file, schema) as writer,
        ):
            for places in batched(images_of(read_tar(tar, f"{shard}.tar")), self.batch_size):
                writer.write_batch(
                    feature_rows(places, self._encoded(places, shard), self.info, schema)
                )
                num_images += len(places)
        return num_images

    def _encoded(self, places: Sequence[ImagePlace], shard: str) -> np.ndarray:
        tokens = self.encode([place.image for place in places])
        wanted = (len(places), self.info.num_tokens, self.info.width)
        if tokens.shape != wanted:
            raise FeatureError(f"{shard}: the encoder gave shape {tokens.shape}, expected {wanted}")
        if not np.isfinite(tokens).all():
            raise FeatureError(
                f"{shard}: the encoder gave NaN or infinity at '{places[0].key}' ff."
            )
        return tokens


def features_path(shard: str) -> str:
    """Where the features of a shard lie in its dataset."""
    return f"{FEATURES}/{shard}.arrow"


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of a finished dataset; raises `FeatureError` with a hint where there is none."""
    if not storage.exists(MANIFEST_FILE):
        raise FeatureError(
            f"{storage.root}: no {MANIFEST_FILE}: not a dataset, or its build has not finished; run "
            "the build again with the same --out, it goes on where it stopped"
        )
    return manifest_from_json(
        storage.read_bytes(MANIFEST_FILE).decode(), storage.address(MANIFEST_FILE)
    )


def begin_features(storage: Storage, info: FeatureInfo, overwrite: bool = False) -> Manifest:
    """The manifest of the dataset, ready for features of `info`.

    Features of another encoder that the manifest names already are refused unless `overwrite`; then the
    manifest stops naming them before the first of their files is replaced.
    """
    manifest = read_manifest(storage)
    if manifest.features is None:
        return manifest
    known = feature_info(manifest.features, storage.root)
    if known == info:
        return manifest
    if not overwrite:
        raise FeatureError(
            f"{storage.root}: has features of '{known.encoder}' ({known.storage}, weights "
            f"{known.weights_sha256[:12]}…), asked for are those of '{info.encoder}' ({info.storage}, "
            f"weights {info.weights_sha256[:12]}…); give --overwrite to replace them"
        )
    manifest = replace(manifest, features=None)
    storage.commit(MANIFEST_FILE, manifest.to_json().encode())
    return manifest


def missing_shards(storage: Storage, manifest: Manifest, info: FeatureInfo) -> list[ShardEntry]:
    """The shards whose features are not there yet, or not from this encoder and this tar."""
    return [entry for entry in manifest.shards if not _is_done(storage, entry, info)]


def finish_features(storage: Storage, info: FeatureInfo) -> Manifest:
    """The manifest, now naming the features; raises `FeatureError` while some shard lacks them."""
    manifest = read_manifest(storage)
    missing = missing_shards(storage, manifest, info)
    if missing:
        raise FeatureError(
            f"{storage.root}: {len(missing)} of {len(manifest.shards)} shards have no features yet, "
            f"the first is {missing[0].name}"
        )
    finished = replace(manifest, features=info.as_dict())
    storage.commit(MANIFEST_FILE, finished.to_json().encode())
    storage.delete(TEMPORARY)
    if storage.is_local:
        with suppress(OSError):  # not empty: it belongs to a build
            storage.local_path(TEMPORARY).parent.rmdir()
    return finished


def images_of(samples: Iterable[Sample]) -> Iterator[ImagePlace]:
    """The images of samples, in order."""
    for sample in samples:
        for number, segment in enumerate(sample.segments):
            if segment.kind == "image":
                yield ImagePlace(sample.key, number, segment.image or b"")


def feature_rows(
    places: Sequence[ImagePlace], tokens: np.ndarray, info: FeatureInfo, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows of the table of features for images and their tokens `[images, P, V]`."""
    scales: pa.Array = pa.nulls(len(places), schema.field("scales").type)
    if info.storage == "int8":
        stored, token_scales = quantised(tokens)
        scales = _lists(token_scales, pa.float32())
    else:
        stored = _halves(tokens, places)
    columns = [
        pa.array([place.key for place in places], pa.string()),
        pa.array([place.segment for place in places], pa.int32()),
        _lists(_halves(tokens.mean(axis=1), places), pa.float16()),
        _lists(stored.reshape(len(places), -1), schema.field("tokens").type.value_type),
        scales,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def quantised(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 tokens and one float32 scale a token: token = int8 * scale, off by half a scale at most."""
    scales = np.abs(tokens).max(axis=2) / np.float32(127)
    safe = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.rint(tokens / safe[:, :, None]).astype(np.int8), safe


def batched(places: Iterable[ImagePlace], size: int) -> Iterator[list[ImagePlace]]:
    """Lists of up to `size` images."""
    rest = iter(places)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _halves(values: np.ndarray, places: Sequence[ImagePlace]) -> np.ndarray:
    largest = float(np.abs(values).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise FeatureError(
            f"'{places[0].key}' ff.: a token value of {largest:.3g} is beyond float16 (65504); store "
            "the features as int8, which keeps a scale a token"
        )
    return values.astype(np.float16)


def _lists(rows: np.ndarray, item: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1), item)
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def _is_done(storage: Storage, entry: ShardEntry, info: FeatureInfo) -> bool:
    path = features_path(entry.name)
    if not storage.exists(path):
        return False
    found = read_arrow_schema(storage, path).metadata or {}
    return (
        found.get(INFO_KEY) == canonical_json(info.as_dict()).encode()
        and found.get(SOURCE_KEY) == entry.sha256.encode()
    )
