"""`report.html`: what a dataset contains, what was dropped and why, and some of its samples.

One self-contained file: styles, charts and thumbnails are inline, there are no scripts, and its content security
policy forbids the browser to load or run anything. This module computes the data, the templates in `templates/` hold
the markup and escape every value. Equal datasets give equal reports.
"""

import base64
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import cv2
import jinja2
import numpy as np

from pipelines.core.pipeline import Reasons
from pipelines.core.storage import Storage
from pipelines.publish.shards import Distribution, Statistics, collect_statistics, pick_samples
from schemas.manifest import Manifest
from schemas.sample import Sample, Segment

REPORT_FILE = "report.html"
_NUM_HOSTS_SHOWN = 12
_NUM_BINS = 24
_THUMBNAIL_SIDE = 200
_THUMBNAIL_QUALITY = 80
_MAX_IMAGES = 4
_MAX_OTHER_TEXTS = 2
_MAX_CHARACTERS = 240


@dataclass(frozen=True)
class Report:
    """Writes `report.html`; to be put into `Pipeline.finish`."""

    title: str
    record_word: str = "document"
    """What a record of this corpus is called."""
    fetch_stage: str = "fetch"
    """The stage whose dropped links count as failures of their hosts."""
    num_cards: int = 12
    """Samples shown."""
    score_titles: Mapping[str, str] = field(default_factory=dict)
    """Names of scores -> titles of their histograms; the name is the default."""

    def __call__(self, storage: Storage, manifest: Manifest, reasons: Reasons) -> None:
        """Write the report of a dataset whose shards, indexes and ledgers are complete."""
        statistics = collect_statistics(storage, manifest, self.fetch_stage)
        page = _templates().get_template("report.html.jinja")
        html = page.render(
            report=self,
            meanings={word: reason.meaning for word, reason in reasons.items()},
            manifest=manifest,
            statistics=statistics,
            num_bytes=sum(s.num_bytes for s in manifest.shards),
            histograms=list(self._histograms(statistics)),
            cards=map(_card, pick_samples(storage, manifest, self.num_cards)),
            hosts=statistics.hosts.worst(_NUM_HOSTS_SHOWN),
            stages=sorted(manifest.stages.items(), key=_stage_order),
            settings=flatten(manifest.config),
            fingerprint=vars(manifest.fingerprint),
        )
        storage.commit(REPORT_FILE, html.encode("utf-8", errors="replace"))

    def _histograms(self, found: Statistics) -> Iterator["Histogram"]:
        word = self.record_word
        yield histogram(f"Images per {word}", "", found.images, True)
        yield histogram(f"Text segments per {word}", "", found.texts, True)
        yield histogram(f"Text per {word}", "characters", found.text_length, True)
        for name, values in sorted(found.scores.items()):
            yield histogram(self.score_titles.get(name, name), "", values, False)
        yield histogram("Shorter side of an image", "pixels", found.side, True)
        yield histogram("Size of an image", "kB", found.image_bytes, False)


@dataclass(frozen=True)
class Histogram:
    """The data of one histogram: bars as (range in words, count), ticks as (fraction of the width, anchor, label)."""

    title: str
    unit: str
    values: Distribution
    bars: Sequence[tuple[str, int]] = ()
    ticks: Sequence[tuple[float, str, str]] = ()


def histogram(title: str, unit: str, values: Distribution, is_whole: bool) -> Histogram:
    """A histogram of the values; without bars where there are none."""
    if not values.size:
        return Histogram(title, unit, values)
    edges, counts = bins(values, is_whole)
    labels = [_range(low, high, is_whole) for low, high in itertools.pairwise(edges)]
    bars = tuple(zip(labels, counts, strict=True))
    return Histogram(title, unit, values, bars, _ticks(edges, is_whole))


def bins(values: Distribution, is_whole: bool) -> tuple[list[float], list[int]]:
    """Edges (one more than bins) and counts; values above the 99.5th percentile are in the last bin."""
    low, high = min(values.counts), values.quantile(0.995)
    width = _round_up((high - low) / _NUM_BINS) if high > low else (1.0 if is_whole else 0.01)
    if is_whole:
        width = max(1.0, math.ceil(width))
    start = math.floor(low / width) * width
    num_bins = max(1, int((high - start) / width + 1e-9) + 1)
    counts = [0] * num_bins
    for value, count in values.counts.items():
        counts[min(num_bins - 1, int((value - start) / width + 1e-9))] += count
    return [start + i * width for i in range(num_bins + 1)], counts


def _range(low: float, high: float, is_whole: bool) -> str:
    if is_whole:
        return number(low) if high - low == 1 else f"{number(low)}–{number(high - 1)}"
    return f"{number(low)}–{number(high)}"


def _ticks(edges: list[float], is_whole: bool) -> list[tuple[float, str, str]]:
    num_bins = len(edges) - 1
    if is_whole and edges[1] - edges[0] == 1 and num_bins <= 12:
        return [((i + 0.5) / num_bins, "middle", number(edges[i])) for i in range(num_bins)]
    shown = ((0, "start"), (num_bins // 2, "middle"), (num_bins, "end"))
    return [(i / num_bins, anchor, number(edges[i])) for i, anchor in shown]


def _round_up(width: float) -> float:
    size = 10.0 ** math.floor(math.log10(width))
    return next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= width * (1 - 1e-9))


@dataclass(frozen=True)
class CardPart:
    """One row of a sample's card: an image with the text right after it, a text alone, or what is not shown."""

    image: Segment | None = None
    similarity: float | None = None
    text: str | None = None
    num_hidden: tuple[int, int] = (0, 0)
    """Texts and images that are left out here."""


def _card(sample: Sample) -> tuple[Sample, list[CardPart]]:
    return sample, list(_parts(sample.segments, sample.meta.get("similarity")))


def _parts(segments: Sequence[Segment], similarity: object) -> Iterator[CardPart]:
    """The first images, each with the text right after it, and the first of the other texts."""
    shown = _shown(segments)
    is_image = [s.kind == "image" for s in segments]
    hidden_from = 0
    for i in sorted(shown):
        if i > hidden_from:
            yield _hidden(segments[hidden_from:i])
        hidden_from = i + 1
        if is_image[i]:
            has_text = i + 1 in shown and not is_image[i + 1]
            text = _shortened(segments[i + 1]) if has_text else None
            yield CardPart(segments[i], _value_at(similarity, sum(is_image[:i])), text)
        elif i == 0 or not is_image[i - 1]:
            yield CardPart(text=_shortened(segments[i]))
    if hidden_from < len(segments):
        yield _hidden(segments[hidden_from:])


def _shown(segments: Sequence[Segment]) -> set[int]:
    images = [i for i, s in enumerate(segments) if s.kind == "image"][:_MAX_IMAGES]
    after = {i + 1 for i in images if i + 1 < len(segments)}
    texts = [i for i, s in enumerate(segments) if s.kind == "text" and (s.text or "").strip()]
    others = [i for i in texts if i not in after][:_MAX_OTHER_TEXTS]
    return {*images, *after, *others}


def _hidden(segments: Sequence[Segment]) -> CardPart:
    num_images = sum(s.kind == "image" for s in segments)
    return CardPart(num_hidden=(len(segments) - num_images, num_images))


def _shortened(segment: Segment) -> str:
    text = (segment.text or "").strip()
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…"


def _value_at(values: object, index: int) -> float | None:
    if isinstance(values, list) and index < len(values) and isinstance(values[index], float):
        return values[index]
    return None


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


def _stage_order(stage: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    """Sort key for the order in which the stages ran: a later one sees fewer records and links."""
    label, counts = stage
    num_links = (counts.get("links") or {}).get("seen", 0)
    return (-counts.get("seen", 0), label != "read", -num_links, label)


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as a list of dotted names and values."""
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += flatten(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def ranked_counts(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Words and their counts, the most frequent first; equal counts by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def number(value: float) -> str:
    """A number for people: 1,234, 12.3, 0.314."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def size(num_bytes: int) -> str:
    """A number of bytes for people, in powers of 1,000."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _templates() -> jinja2.Environment:
    folder = files("pipelines.publish").joinpath("templates")
    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "thousands": "{:,}".format,
        "number": number,
        "percent": lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "–",
        "ranked": ranked_counts,
        "size": size,
        "thumbnail": thumbnail,
    }
    return found


def _printable(value: Any) -> Any:
    """Text with its control characters shown as U+FFFD; markup of our own templates is left as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join("\ufffd" if ord(c) < 32 and c not in "\n\t" else c for c in value)
