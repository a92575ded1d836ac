"""A contact sheet: some samples of a dataset as cards, each image beside its sentences."""

import base64
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from pipelines.core.storage import Storage
from pipelines.core.tables import read_parquet
from pipelines.publish.chart import safe
from schemas.manifest import Manifest
from schemas.sample import Sample, Segment
from schemas.shard import INDEXES, SHARDS, decode_members
from schemas.tables import INDEX

_THUMBNAIL_SIDE = 200
_THUMBNAIL_QUALITY = 80
_MAX_IMAGES = 4
_MAX_TEXTS_APART = 2
_MAX_CHARACTERS = 240


def contact_sheet(storage: Storage, manifest: Manifest, number: int) -> str:
    """Cards of samples that lie evenly over the dataset: equal datasets, equal cards."""
    cards = "".join(_card(sample) for sample in pick_samples(storage, manifest, number))
    return f'<div class="sheet">{cards}</div>' if cards else '<p class="quiet">No samples.</p>'


def pick_samples(storage: Storage, manifest: Manifest, number: int) -> Iterator[Sample]:
    """Up to `number` samples, spread evenly, each cut out of its tar."""
    total, first = manifest.num_samples, 0
    number = min(number, total)
    wanted = [(2 * i + 1) * total // (2 * number) for i in range(number)]
    for shard in manifest.shards:
        rows = [w - first for w in wanted if first <= w < first + shard.num_samples]
        first += shard.num_samples
        if rows:
            yield from _cut(storage, shard.name, rows)


def _cut(storage: Storage, shard: str, rows: Sequence[int]) -> Iterator[Sample]:
    path = f"{INDEXES}/{shard}.parquet"
    index = read_parquet(storage, path, INDEX, ("key", "members")).take(list(rows))
    with storage.open(f"{SHARDS}/{shard}.tar") as tar:
        for row in index.to_pylist():
            members = {}
            for place in row["members"]:
                tar.seek(place["offset"])
                members[place["name"]] = tar.read(place["size"])
            yield decode_members(row["key"], members, f"{shard}.tar")


def _card(sample: Sample) -> str:
    url = sample.meta.get("url")
    source = f'<p class="quiet url">{safe(url)}</p>' if isinstance(url, str) else ""
    parts = "".join(_parts(sample.segments, sample.meta.get("similarity")))
    return f'<article class="card">{parts}<footer><code>{safe(sample.key)}</code>{source}</footer></article>'


def _parts(segments: Sequence[Segment], similarity: object) -> Iterator[str]:
    """The first images, each beside the text right after it, and some of the text in between."""
    shown = _shown(segments)
    is_image = [s.kind == "image" for s in segments]
    hidden_from = 0
    for place in sorted(shown):
        if place > hidden_from:
            yield f'<p class="gap">{_gap(segments[hidden_from:place])}</p>'
        hidden_from = place + 1
        if is_image[place]:
            score = _value(similarity, sum(is_image[:place]))
            has_text = place + 1 in shown and not is_image[place + 1]
            text = _paragraph(segments[place + 1], "beside") if has_text else ""
            yield f'<div class="pair">{_image(segments[place], score)}{text}</div>'
        elif place == 0 or not is_image[place - 1]:
            yield _paragraph(segments[place], "apart")
    if hidden_from < len(segments):
        yield f'<p class="gap">{_gap(segments[hidden_from:])}</p>'


def _paragraph(segment: Segment, kind: str) -> str:
    text = (segment.text or "").strip()
    shown = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…"
    return f'<p class="{kind}" dir="auto">{safe(shown)}</p>'


def _shown(segments: Sequence[Segment]) -> set[int]:
    images = [i for i, s in enumerate(segments) if s.kind == "image"][:_MAX_IMAGES]
    beside = {i + 1 for i in images if i + 1 < len(segments)}
    texts = [i for i, s in enumerate(segments) if s.kind == "text" and (s.text or "").strip()]
    apart = [i for i in texts if i not in beside][:_MAX_TEXTS_APART]
    return {*images, *beside, *apart}


def _gap(segments: Sequence[Segment]) -> str:
    num_images = sum(s.kind == "image" for s in segments)
    counts = ((len(segments) - num_images, "sentence"), (num_images, "image"))
    return "… " + ", ".join(f"{n} more {word}{'s' * (n > 1)}" for n, word in counts if n)


def _image(segment: Segment, similarity: float | None) -> str:
    badge = "" if similarity is None else f"<span>{similarity:.2f}</span>"
    size = f"{segment.width} × {segment.height}"
    return f'<div class="picture"><img alt="{size}" title="{size}" src="{thumbnail(segment)}">{badge}</div>'


def thumbnail(segment: Segment) -> str:
    """A small JPEG of an image segment as a data address."""
    pixels = cv2.imdecode(np.frombuffer(segment.image or b"", np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, "a published image decodes"
    height, width = pixels.shape[:2]
    scale = min(1.0, _THUMBNAIL_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _value(values: object, place: int) -> float | None:
    if isinstance(values, list) and place < len(values) and isinstance(values[place], float):
        return values[place]
    return None
