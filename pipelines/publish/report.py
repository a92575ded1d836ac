"""`report.html`: what a dataset holds, what was left out and why, and how it looks.

One file that needs nothing else: styles, charts and thumbnails are inside, there is no script, and its content
policy forbids a browser to load or run anything. Everything from the web is escaped. Equal datasets give equal
reports.

A contact sheet: some samples of a dataset as cards, each image beside its sentences.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import cv2
import numpy as np

from pipelines.core.storage import Storage, read_parquet
from pipelines.publish.charts import Figures, bars, collect_figures, histogram, number, safe, size
from schemas.manifest import Manifest, Tally
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


REPORT_FILE = "report.html"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Report:
    """Writes `report.html`; to be put into `Pipeline.finish`."""

    title: str
    reasons: Mapping[str, str]
    """Reason -> the sentence that explains it."""
    record_word: str = "document"
    """What a record of this corpus is called."""
    fetch_stage: str = "fetch"
    """The stage whose dropped links count as failures of their hosts."""
    num_cards: int = 12
    score_titles: Mapping[str, str] = field(default_factory=dict)
    """Names of scores -> titles of their histograms; others go by their names."""

    def __call__(self, storage: Storage, manifest: Manifest) -> None:
        """Write the report of a dataset whose shards, index and ledger are there."""
        figures = collect_figures(storage, manifest, self.fetch_stage)
        parts: list[Callable[[], str]] = [
            lambda: self._head(manifest, figures),
            lambda: _alarms(manifest.alarms),
            lambda: self._fates(manifest),
            lambda: self._charts(figures),
            lambda: f"<h2>A look inside</h2>{contact_sheet(storage, manifest, self.num_cards)}",
            lambda: _hosts(figures),
            lambda: _stages(manifest),
            lambda: _origin(manifest),
        ]
        page = _page(self.title, "".join(part() for part in parts))
        storage.commit(REPORT_FILE, page.encode("utf-8", errors="replace"))

    def _head(self, manifest: Manifest, figures: Figures) -> str:
        records, links = manifest.records, manifest.links
        lead = (
            f"{records.kept:,} of {records.total:,} {self.record_word}s were kept, with "
            f"{manifest.num_images:,} images. {links.total:,} links were named in the input; every "
            "one of them stands in the ledger, kept or with the reason why not."
        )
        tiles = (
            (f"{records.kept:,}", f"{self.record_word}s, {_share(records)}"),
            (f"{manifest.num_images:,}", f"images, {_share(links)} of links"),
            (number(figures.images.mean), f"images a {self.record_word}"),
            (number(figures.text_length.mean), f"characters a {self.record_word}"),
            (size(sum(s.num_bytes for s in manifest.shards)), f"in {_plural(manifest)}"),
        )
        shown = "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        return (
            f'<header><h1>{safe(self.title)}</h1><p class="lead">{lead}</p></header>'
            f'<div class="tiles">{shown}</div>'
        )

    def _fates(self, manifest: Manifest) -> str:
        return "".join(
            [
                '<h2>Kept, and why not</h2><div class="two">',
                self._fate(f"{self.record_word.capitalize()}s", manifest.records),
                self._fate("Links", manifest.links),
                "</div>",
            ]
        )

    def _fate(self, title: str, tally: Tally) -> str:
        shown = bars(tally.dropped, tally.total, self.reasons, tally.kept)
        return f'<section class="panel"><h3>{title}: {tally.total:,}</h3>{shown}</section>'

    def _charts(self, figures: Figures) -> str:
        word = self.record_word
        shown = [
            histogram(f"Images a {word}", "", figures.images, True),
            histogram(f"Sentences a {word}", "", figures.texts, True),
            histogram(f"Text a {word}", "characters", figures.text_length, True),
            *(
                histogram(self.score_titles.get(name, name), "", values, False)
                for name, values in sorted(figures.scores.items())
            ),
            histogram("Shorter side of an image", "pixels", figures.side, True),
            histogram("Size of an image", "kB", figures.image_bytes, False),
        ]
        return f'<h2>In numbers</h2><div class="charts">{"".join(shown)}</div>'


def _page(title: str, body: str) -> str:
    style = files("pipelines.publish").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _alarms(alarms: tuple[str, ...]) -> str:
    if not alarms:
        return ""
    items = "".join(f"<li>{safe(alarm)}</li>" for alarm in alarms)
    return f'<div class="alarm" role="alert"><b>Look at this first</b><ul>{items}</ul></div>'


def _hosts(figures: Figures) -> str:
    worst = figures.hosts.worst(12)
    if not worst:
        return ""
    rows = [
        (safe(h), f"{n:,}", f"{kept:,}", f"<code>{safe(why)}</code>") for h, n, kept, why in worst
    ]
    table = _table(("Host", "Failed", "Kept", "Most often"), rows, numeric=(1, 2))
    return f"<h2>Hosts that failed most</h2>{table}"


def _stages(manifest: Manifest) -> str:
    rows = []
    for label, counts in sorted(manifest.stages.items(), key=_in_flow):
        links = counts.get("links") or {}
        rows.append(
            (
                f"<code>{safe(label)}</code>",
                f"{counts.get('seen', 0):,}",
                f"{sum(counts.get('dropped', {}).values()):,}",
                f"{links['seen']:,}" if links else "",
                f"{sum(links['dropped'].values()):,}" if links else "",
            )
        )
    heads = ("Stage or filter", "Records seen", "dropped", "Links seen", "dropped")
    return f"<h2>Step by step</h2>{_table(heads, rows, numeric=(1, 2, 3, 4))}"


def _in_flow(stage: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    """Key that puts stages in the order of the work: what sees less comes later."""
    label, counts = stage
    num_links = (counts.get("links") or {}).get("seen", 0)
    return (-counts.get("seen", 0), label != "read", -num_links, label)


def _origin(manifest: Manifest) -> str:
    config = [
        (f"<code>{safe(n)}</code>", f"<code>{safe(v)}</code>") for n, v in flat(manifest.config)
    ]
    prints = vars(manifest.fingerprint).items()
    hashes = [(f"<code>{safe(n)}</code>", f"<code>{safe(v)}</code>") for n, v in prints]
    return (
        f"<h2>Made with</h2>{_table(('Setting', 'Value'), config)}"
        f"<h2>Fingerprint</h2>{_table(('Of', 'sha256'), hashes)}"
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as a list of dotted names and values."""
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _table(
    heads: tuple[str, ...], rows: list[tuple[str, ...]], numeric: tuple[int, ...] = ()
) -> str:
    def cells(tag: str, values: tuple[str, ...]) -> str:
        kinds = [' class="n"' if i in numeric else "" for i in range(len(values))]
        return "".join(f"<{tag}{k}>{v}</{tag}>" for k, v in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f'<div class="panel scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _share(tally: Tally) -> str:
    return f"{100 * tally.kept / tally.total:.1f} %" if tally.total else "none"


def _plural(manifest: Manifest) -> str:
    num_shards = len(manifest.shards)
    return f"{num_shards:,} shard{'s' * (num_shards != 1)}"
