"""Cards: a few samples of a dataset, each as rows that a page can show.

| sample                   | rows                                                                                    |
|--------------------------|-----------------------------------------------------------------------------------------|
| dialogue (roles)         | its turns in order, each text and each run of images with its role                      |
| clip, storyboard (times) | runs of frames with their times, and the texts between them                             |
| everything else          | the first images, each beside the text right after it, and the first of the other texts |

What is left out is counted in a row of its own.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.core.published import open_tar, read_sample
from pipelines.core.storage import Storage, read_parquet
from schemas.manifest import Manifest
from schemas.sample import Sample, Segment
from schemas.shard import INDEXES
from schemas.tables import INDEX

_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 200, 80
_MAX_IMAGES, _MAX_OTHER_TEXTS = 4, 2
_MAX_FRAMES, _MAX_RUNS = 12, 10


def pick_samples(storage: Storage, manifest: Manifest, num_samples: int) -> Iterator[Sample]:
    """Up to `num_samples` samples at equal distances over the dataset; equal datasets give equal samples."""
    total, first = manifest.num_samples, 0
    num_samples = min(num_samples, total)
    wanted = [(2 * i + 1) * total // (2 * num_samples) for i in range(num_samples)]
    for shard in manifest.shards:
        rows = [w - first for w in wanted if first <= w < first + shard.num_samples]
        first += shard.num_samples
        if rows:
            path = f"{INDEXES}/{shard.name}.parquet"
            index = read_parquet(storage, path, INDEX, ("key", "members")).take(rows)
            with open_tar(storage, shard) as tar:
                for row in index.to_pylist():
                    yield read_sample(tar, row, shard)


@dataclass(frozen=True)
class CardPart:
    """One row of a card: an image with the text right after it, frames, a text alone, or segments not shown."""

    image: Segment | None = None
    similarity: object = None
    frames: Sequence[Segment] = ()
    text: Segment | None = None
    hidden: Sequence[Segment] = ()
    role: str | None = None
    """Of the turn that the row belongs to."""


def card_parts(sample: Sample) -> Iterator[CardPart]:
    """The rows of a sample's card."""
    if any(s.role is not None or s.time_s is not None for s in sample.segments):
        return _runs(sample.segments)
    return _pairs(sample)


def _runs(segments: Sequence[Segment]) -> Iterator[CardPart]:
    """Texts, and runs of images that follow each other; the first ones, with a bound on all frames."""
    groups = itertools.groupby(enumerate(segments), key=_run_of)
    num_left, shown_until = _MAX_FRAMES, 0
    for (role, _, _), group in itertools.islice(groups, _MAX_RUNS):
        run = [segment for _, segment in group]
        shown_until += len(run)
        if run[0].kind == "text":
            yield CardPart(text=run[0], role=role)
            continue
        frames = run[:num_left]
        num_left -= len(frames)
        if frames:
            yield CardPart(frames=frames, role=role)
        if len(frames) < len(run):
            yield CardPart(hidden=run[len(frames) :], role=role)
    if shown_until < len(segments):
        yield CardPart(hidden=segments[shown_until:])


def _run_of(numbered: tuple[int, Segment]) -> tuple[str | None, str, int]:
    """Equal for neighbours that are shown together; texts stand alone."""
    number, segment = numbered
    return segment.role, segment.kind, number if segment.kind == "text" else -1


def _pairs(sample: Sample) -> Iterator[CardPart]:
    """The first images, each with the text right after it, and the first of the other texts."""
    segments, similarity = sample.segments, sample.meta.get("similarity")
    images = [i for i, s in enumerate(segments) if s.kind == "image"]
    scores = dict(zip(images, similarity, strict=False)) if isinstance(similarity, list) else {}
    shown = _shown(segments)
    hidden_from = 0
    for i in sorted(shown):
        if i > hidden_from:
            yield CardPart(hidden=segments[hidden_from:i])
        hidden_from = i + 1
        if i in images:
            has_text = i + 1 in shown and i + 1 not in images
            yield CardPart(segments[i], scores.get(i), text=segments[i + 1] if has_text else None)
        elif i - 1 not in images:
            yield CardPart(text=segments[i])
    if hidden_from < len(segments):
        yield CardPart(hidden=segments[hidden_from:])


def _shown(segments: Sequence[Segment]) -> set[int]:
    images = [i for i, s in enumerate(segments) if s.kind == "image"][:_MAX_IMAGES]
    after = {i + 1 for i in images if i + 1 < len(segments)}
    texts = [i for i, s in enumerate(segments) if s.kind == "text" and (s.text or "").strip()]
    others = [i for i in texts if i not in after][:_MAX_OTHER_TEXTS]
    return {*images, *after, *others}


def thumbnail(segment: Segment) -> str:
    """A small JPEG of an image segment as a data URL."""
    pixels = cv2.imdecode(np.frombuffer(segment.image or b"", np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, "a published image decodes"
    height, width = pixels.shape[:2]
    scale = min(1.0, _THUMBNAIL_SIDE / min(height, width))
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def clock(seconds: float) -> str:
    """A time for people: 0:07, 0:07.5, 12:40, 1:02:03."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"
