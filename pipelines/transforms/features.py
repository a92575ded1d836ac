"""Features of a published dataset: the output of a visual encoder for every image, as one more stage of the engine.

The encoder is handed in as a function that is called on the worker, so that nothing here knows a model. The engine
(`pipelines.core.run.extend`) runs the stage as any other: shard by shard, resumable, locally or on Ray. A shard is done
when its features are there, of the same encoder and made from the same tar; the manifest names the features last.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, BinaryIO

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import Resources, ShardPlan
from pipelines.core.published import read_samples
from pipelines.core.storage import Storage, read_arrow_schema
from schemas.features import INFO_KEY, FeatureInfo, feature_info, features_schema
from schemas.manifest import Manifest, ShardEntry
from schemas.sample import Sample, canonical_json
from schemas.shard import FEATURES
from schemas.validation import Checked

SOURCE_KEY = b"emu.features.tar_sha256"

Encode = Callable[[Sequence[bytes]], np.ndarray]
"""Encoded images in, float32 tokens `[images, P, V]` out."""


class FeatureError(ValueError):
    """Features that cannot be written as asked; the message says what to do."""


@dataclass(frozen=True)
class ImageRef:
    """An image of a shard: its sample, its index among the segments, and its encoded bytes."""

    key: str
    segment: int
    image: bytes


@dataclass(frozen=True)
class FeatureStage(Checked):
    """The stage that adds features to a published dataset; see `pipelines.core.pipeline.Extension`."""

    info: FeatureInfo
    make_encoder: Callable[[], Encode]
    """Called once on each worker, because it loads a model."""
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="images per call")] = 32
    """Images that pass through the encoder at once. It decides how rows are grouped in the files."""
    overwrite: bool = False
    """Replace features of another encoder."""
    resources: Resources = field(default_factory=Resources)

    @property
    def name(self) -> str:
        """Of the stage."""
        return "features"

    def admit(self, manifest: Manifest, root: str) -> Manifest:
        """The manifest, no longer naming features of another encoder, which are refused without `overwrite`."""
        if manifest.features is None:
            return manifest
        known = feature_info(manifest.features, root)
        if known == self.info:
            return manifest
        if not self.overwrite:
            raise FeatureError(
                f"{root}: has features of '{known.encoder}' ({known.storage}, weights "
                f"{known.weights_sha256[:12]}…), requested are those of '{self.info.encoder}' "
                f"({self.info.storage}, weights {self.info.weights_sha256[:12]}…); give --overwrite to "
                "replace them"
            )
        return replace(manifest, features=None)

    def is_done(self, storage: Storage, entry: ShardEntry) -> bool:
        """Whether the features of a shard are there, from this encoder and this tar."""
        path = features_path(entry.name)
        if not storage.exists(path):
            return False
        found = read_arrow_schema(storage, path).metadata or {}
        return (
            found.get(INFO_KEY) == canonical_json(self.info.as_dict()).encode()
            and found.get(SOURCE_KEY) == entry.sha256.encode()
        )

    def open(self, storage: Storage) -> "FeatureWork":
        """The work on shards, with an encoder of its own."""
        return FeatureWork(storage, self.info, self.make_encoder(), self.batch_size)

    def complete(self, manifest: Manifest) -> Manifest:
        """The manifest that names the features."""
        return replace(manifest, features=self.info.as_dict())


class FeatureWork:
    """Writes the features of one shard after another."""

    def __init__(
        self, storage: Storage, info: FeatureInfo, encode: Encode, batch_size: int
    ) -> None:
        self.storage, self.info, self.encode, self.batch_size = storage, info, encode, batch_size

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the features of a shard and return its number of images."""
        entry = ShardEntry(**shard.parts[0])
        path = features_path(shard.name)
        return self.storage.commit(path, lambda file: self._write(file, entry)) or 0

    def close(self) -> None:
        """Nothing to release: the encoder goes with the worker."""

    def _write(self, file: BinaryIO, entry: ShardEntry) -> int:
        schema = features_schema(self.info)
        schema = schema.with_metadata(
            {**(schema.metadata or {}), SOURCE_KEY: entry.sha256.encode()}
        )
        num_images = 0
        with pa.ipc.new_file(file, schema) as writer:
            samples = read_samples(self.storage, entry)
            for images in batched(images_of(samples), self.batch_size):
                tokens = self._encoded(images, entry.name)
                writer.write_batch(feature_rows(images, tokens, self.info, schema))
                num_images += len(images)
        return num_images

    def _encoded(self, images: Sequence[ImageRef], shard: str) -> np.ndarray:
        tokens = self.encode([image.image for image in images])
        wanted = (len(images), self.info.num_tokens, self.info.width)
        if tokens.shape != wanted:
            raise FeatureError(
                f"{shard}: the encoder returned shape {tokens.shape}, expected {wanted}"
            )
        if not np.isfinite(tokens).all():
            raise FeatureError(
                f"{shard}: the encoder returned NaN or infinity in the batch from '{images[0].key}'"
            )
        return tokens


def features_path(shard: str) -> str:
    """Where the features of a shard lie in its dataset."""
    return f"{FEATURES}/{shard}.arrow"


def images_of(samples: Iterable[Sample]) -> Iterator[ImageRef]:
    """The images of samples, in order."""
    for sample in samples:
        for number, segment in enumerate(sample.segments):
            if segment.kind == "image":
                yield ImageRef(sample.key, number, segment.image or b"")


def feature_rows(
    images: Sequence[ImageRef], tokens: np.ndarray, info: FeatureInfo, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows of the table of features for images and their tokens `[images, P, V]`."""
    scales: pa.Array = pa.nulls(len(images), schema.field("scales").type)
    if info.storage == "int8":
        stored, token_scales = quantised(tokens)
        scales = _lists(token_scales, pa.float32())
    else:
        stored = _halves(tokens, images)
    columns = [
        pa.array([image.key for image in images], pa.string()),
        pa.array([image.segment for image in images], pa.int32()),
        _lists(_halves(tokens.mean(axis=1), images), pa.float16()),
        _lists(stored.reshape(len(images), -1), schema.field("tokens").type.value_type),
        scales,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def quantised(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 tokens and one float32 scale per token: token = int8 * scale, off by half a scale at most."""
    scales = np.abs(tokens).max(axis=2) / np.float32(127)
    safe = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.rint(tokens / safe[:, :, None]).astype(np.int8), safe


def batched(images: Iterable[ImageRef], size: int) -> Iterator[list[ImageRef]]:
    """Lists of up to `size` images."""
    rest = iter(images)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _halves(values: np.ndarray, images: Sequence[ImageRef]) -> np.ndarray:
    largest = float(np.abs(values).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise FeatureError(
            f"a token value in the batch from '{images[0].key}' of {largest:.3g} is beyond float16 (65504); store "
            "the features as int8, which keeps a scale per token"
        )
    return values.astype(np.float16)


def _lists(rows: np.ndarray, item: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1), item)
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
