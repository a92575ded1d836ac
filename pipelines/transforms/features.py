"""Features of a published dataset: the output of a visual encoder for every image, as one more stage of the engine.

The encoder is made on the worker by a function that is handed in, so that nothing here knows a model. The engine
(`pipelines.core.run.extend`) runs the stage as any other: shard by shard, resumable, locally or on Ray. A shard is done
when its features are there, of the same encoder and made from the same tar; the manifest names the features last.

A worker reads, decodes, encodes and writes at the same time: one thread reads the tar, some decode the images of the
next batches, one runs the encoder, and the thread of the stage writes.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, BinaryIO, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import Resources, ShardPlan
from pipelines.core.published import read_samples
from pipelines.core.storage import Storage, read_arrow_schema
from schemas.features import FeatureInfo, feature_info, features_schema, stamps
from schemas.manifest import Manifest, ShardEntry
from schemas.sample import Sample
from schemas.shard import FEATURES
from schemas.validation import Checked, SchemaError

T = TypeVar("T")
AHEAD = 2
"""Batches that are read and decoded while the encoder works on one."""
GROUPS = 2
"""Groups of images of a batch that each thread decodes; a future for every image took a tenth of the time."""
LARGEST_HALF = float(np.finfo(np.float16).max)
SMALLEST_SCALE = np.finfo(np.float32).tiny
LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
"""127 times this is still finite."""


class Encoder(Protocol):
    """Images to features in two steps, so that images are decoded while others are encoded."""

    def prepare(self, image: bytes) -> Any:
        """What `encode` takes of one encoded image; called from several threads at once.

        Raises ValueError for an image that cannot be decoded.
        """
        ...

    def encode(self, prepared: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """The embeddings `[N, E]` and the tokens `[N, P, V]` of N images, float32; None if no tokens are wanted."""
        ...


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
    make_encoder: Callable[[], Encoder]
    """Called once on each worker, because it loads a model."""
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="images per call")] = 32
    """Images that pass through the encoder at once. It decides how rows are grouped in the files."""
    decode_threads: Annotated[int, Field(ge=1, le=1024, description="per worker")] = 2
    """Threads of a worker that decode images."""
    overwrite: bool = False
    """Replace features of another encoder."""
    resources: Resources = field(default_factory=Resources)

    @property
    def name(self) -> str:
        """Of the stage."""
        return "features"

    def admit(self, manifest: Manifest, root: str) -> Manifest:
        """The manifest, no longer naming features of another encoder, which are refused without `overwrite`."""
        if manifest.features is None or self.overwrite:
            is_same = manifest.features == self.info.as_dict()
            return manifest if is_same else replace(manifest, features=None)
        try:
            known = feature_info(manifest.features, root)
        except SchemaError as error:
            raise FeatureError(str(error)) from error
        if known != self.info:
            raise FeatureError(
                f"{root}: has features of {_words(known)}; requested are those of {_words(self.info)}; give "
                "--overwrite to replace them"
            )
        return manifest

    def is_done(self, storage: Storage, entry: ShardEntry) -> bool:
        """Whether the features of a shard are there, from this encoder and this tar."""
        path = features_path(entry.name)
        if not storage.exists(path):
            return False
        found = read_arrow_schema(storage, path).metadata or {}
        return stamps(self.info, entry.sha256).items() <= found.items()

    def open(self, storage: Storage) -> "FeatureWork":
        """The work on shards, with an encoder of its own."""
        return FeatureWork(
            storage, self.info, self.make_encoder(), self.batch_size, self.decode_threads
        )

    def complete(self, manifest: Manifest) -> Manifest:
        """The manifest that names the features."""
        return replace(manifest, features=self.info.as_dict())


class FeatureWork:
    """Writes the features of one shard after another."""

    def __init__(
        self,
        storage: Storage,
        info: FeatureInfo,
        encoder: Encoder,
        batch_size: int,
        decode_threads: int = 2,
    ) -> None:
        self.storage, self.info, self.encoder = storage, info, encoder
        self.batch_size, self.decode_threads = batch_size, decode_threads

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the features of a shard and return its number of images."""
        entry = ShardEntry(**shard.parts[0])
        path = features_path(shard.name)
        return self.storage.commit(path, lambda file: self._write(file, entry)) or 0

    def close(self) -> None:
        """Nothing to release: the encoder goes with the worker."""

    def _write(self, file: BinaryIO, entry: ShardEntry) -> int:
        schema = features_schema(self.info, entry.sha256)
        num_images = 0
        with ExitStack() as stack:
            writer = stack.enter_context(pa.ipc.new_file(file, schema))
            decoding = stack.enter_context(_threads(self.decode_threads, "decode"))
            reading = stack.enter_context(_threads(1, "read"))
            encoding = stack.enter_context(_threads(1, "encode"))
            images = images_of(read_samples(self.storage, entry))
            batches = ahead(self._decoded(images, decoding), reading, AHEAD)
            encoded = self._encoded(batches, entry.name)
            for refs, pooled, tokens in ahead(encoded, encoding, 1):
                writer.write_batch(feature_rows(refs, pooled, tokens, self.info, schema))
                num_images += len(refs)
        return num_images

    def _decoded(
        self, images: Iterable[ImageRef], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[ImageRef], list[Future[list[Any]]]]]:
        """Batches, with the decoding of their images under way, in a few groups for each thread."""
        size = max(1, self.batch_size // (GROUPS * self.decode_threads))
        for refs in batched(images, self.batch_size):
            groups = (refs[start : start + size] for start in range(0, len(refs), size))
            yield refs, [pool.submit(_prepared, self.encoder, group) for group in groups]

    def _encoded(
        self, batches: Iterable[tuple[list[ImageRef], list[Future[list[Any]]]]], shard: str
    ) -> Iterator[tuple[list[ImageRef], np.ndarray, np.ndarray | None]]:
        for refs, futures in batches:
            try:
                prepared = [image for future in futures for image in future.result()]
            except _UndecodableError as error:
                raise FeatureError(f"{shard}: {error}") from error.__cause__
            pooled, tokens = self.encoder.encode(prepared)
            self._check(refs, pooled, tokens, shard)
            yield refs, pooled, tokens

    def _check(
        self,
        refs: Sequence[ImageRef],
        pooled: np.ndarray,
        tokens: np.ndarray | None,
        shard: str,
    ) -> None:
        info, num = self.info, len(refs)
        wanted = [(num, info.pooled_width)]
        wanted += [] if info.patches == "none" else [(num, info.num_tokens, info.width)]
        found = [array for array in (pooled, tokens) if array is not None]
        if [array.shape for array in found] != wanted:
            raise FeatureError(
                f"{shard}: the encoder returned shapes {[a.shape for a in found]}, expected {wanted}"
            )
        if not all(np.isfinite(array).all() for array in found):
            raise FeatureError(
                f"{shard}: the encoder returned NaN or infinity in the batch from '{refs[0].key}'"
            )


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
    images: Sequence[ImageRef],
    pooled: np.ndarray,
    tokens: np.ndarray | None,
    info: FeatureInfo,
    schema: pa.Schema,
) -> pa.RecordBatch:
    """Rows of the table of features for images, their embeddings `[N, E]` and their tokens `[N, P, V]`."""
    whole = info.patches == "float32"
    columns = [
        pa.array([image.key for image in images], pa.string()),
        pa.array([image.segment for image in images], pa.int32()),
        _lists(pooled if whole else _halves(pooled, images)),
    ]
    if info.patches == "int8":
        assert tokens is not None
        stored, scales = quantised(tokens)
        columns += [_lists(stored.reshape(len(images), -1)), _lists(scales)]
    elif info.patches != "none":
        assert tokens is not None
        columns.append(
            _lists((tokens if whole else _halves(tokens, images)).reshape(len(images), -1))
        )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def quantised(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 tokens `[N, P, V]` and float32 scales `[N, P]`: token = int8 * scale, off by half a scale at most.

    The scale is the largest absolute value of the token / 127. A token whose scale would be subnormal (values below
    1.5e-36) becomes zero, with the scale 1.
    """
    scales = (np.abs(tokens).max(axis=2) / np.float32(127)).astype(np.float32)
    is_normal = scales >= SMALLEST_SCALE
    scales[~is_normal] = 1
    scales = np.minimum(scales, LARGEST_SCALE)
    rounded = np.rint(tokens / scales[:, :, None])
    return np.clip(rounded, -127, 127).astype(np.int8), scales


def batched(images: Iterable[ImageRef], size: int) -> Iterator[list[ImageRef]]:
    """Lists of up to `size` images."""
    rest = iter(images)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def ahead(items: Iterator[T], pool: ThreadPoolExecutor, depth: int) -> Iterator[T]:
    """The items in order, the next `depth` of them made in the one thread of `pool`; exceptions come in turn."""
    end = object()
    waiting = deque(pool.submit(next, items, end) for _ in range(depth))
    while True:
        item = waiting.popleft().result()
        if item is end:
            return
        waiting.append(pool.submit(next, items, end))
        yield cast(T, item)


@contextmanager
def _threads(number: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; at the end, what has not begun is cancelled and the rest is waited for."""
    pool = ThreadPoolExecutor(number, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _UndecodableError(ValueError):
    """An image that cannot be decoded."""


def _prepared(encoder: Encoder, group: Sequence[ImageRef]) -> list[Any]:
    """What the encoder takes of each image; raises `_UndecodableError`."""
    prepared = []
    for ref in group:
        try:
            prepared.append(encoder.prepare(ref.image))
        except ValueError as error:
            raise _UndecodableError(
                f"image {ref.segment} of sample '{ref.key}' cannot be decoded: {error}"
            ) from error
    return prepared


def _words(info: FeatureInfo) -> str:
    return (
        f"'{info.encoder}' (weights {info.weights_sha256[:12]}…, {info.preprocessing}, {info.precision}, "
        f"patches {info.patches})"
    )


def _halves(values: np.ndarray, images: Sequence[ImageRef]) -> np.ndarray:
    largest = float(np.abs(values).max(initial=0))
    if largest > LARGEST_HALF:
        raise FeatureError(
            f"a value of {largest:.3g} in the batch from '{images[0].key}' is beyond float16 (65504); store "
            "the features with --patches float32, or int8, which keeps a scale per token"
        )
    return values.astype(np.float16)


def _lists(rows: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
