"""Figures of a published dataset, from streaming through its index and ledger once.

Memory does not grow with the dataset: distributions keep values rounded to three digits, hosts the most
frequent some thousands.

Charts for the report as inline SVG and HTML, coloured by the page's CSS variables.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.storage import Storage, read_parquet
from schemas.manifest import Manifest
from schemas.shard import INDEXES, LEDGERS
from schemas.tables import DROPPED, INDEX, KEPT, LEDGER

MAX_HOSTS = 4096
_DIGITS = 3
_INDEX_COLUMNS = (
    "members",
    "num_segments",
    "num_images",
    "text_length",
    "image_widths",
    "image_heights",
    "scores",
)


@dataclass
class Distribution:
    """How often which value occurred; values are rounded to three digits."""

    counts: Counter[float] = field(default_factory=Counter)
    total: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count the finite ones of the values."""
        values = values[np.isfinite(values)]
        found, counts = np.unique(_rounded(values), return_counts=True)
        self.counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.total += float(values.sum())

    @property
    def size(self) -> int:
        """Values counted."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Of all values; 0 where there are none."""
        return self.total / self.size if self.size else 0.0

    @property
    def median(self) -> float:
        """Of all values, to three digits; 0 where there are none."""
        seen, half = 0, self.size / 2
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= half:
                return value
        return 0.0


@dataclass
class Hosts:
    """For the hosts with the most failed links: how many failed, why, and how many were kept.

    Above `MAX_HOSTS` the rarest half is forgotten, so counts of hosts that are rare for long are too small.
    """

    failed: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, urls: Iterable[str], reasons: Iterable[str | None]) -> None:
        """Count links; null as the reason stands for a link that was kept."""
        for url, reason in zip(urls, reasons, strict=True):
            host = host_of(url)
            if reason is None:
                self.kept[host] += 1
            else:
                self.failed[host] += 1
                self.reasons.setdefault(host, Counter())[reason] += 1
        self._forget()

    def worst(self, number: int) -> list[tuple[str, int, int, str]]:
        """Host, links failed, links kept, most frequent reason."""
        ranked = sorted(self.failed.items(), key=lambda item: (-item[1], item[0]))
        return [(h, n, self.kept[h], _first(self.reasons[h])) for h, n in ranked[:number]]

    def _forget(self) -> None:
        for counter in (self.failed, self.kept):
            if len(counter) > MAX_HOSTS:
                frequent = counter.most_common(MAX_HOSTS // 2)
                counter.clear()
                counter.update(dict(frequent))
        self.reasons = {h: r for h, r in self.reasons.items() if h in self.failed}


@dataclass
class Figures:
    """The distributions and hosts of a dataset."""

    images: Distribution = field(default_factory=Distribution)
    """Images a sample."""
    texts: Distribution = field(default_factory=Distribution)
    """Text segments a sample."""
    text_length: Distribution = field(default_factory=Distribution)
    """Characters a sample."""
    side: Distribution = field(default_factory=Distribution)
    """Pixels of the shorter side of an image."""
    image_bytes: Distribution = field(default_factory=Distribution)
    """Kilobytes (1,000 bytes) of an image."""
    scores: dict[str, Distribution] = field(default_factory=dict)
    """By name of the score, a value a sample."""
    hosts: Hosts = field(default_factory=Hosts)


def collect_figures(storage: Storage, manifest: Manifest, fetch_stage: str) -> Figures:
    """The figures of all shards; failures of hosts are those of the stage that fetches."""
    figures = Figures()
    for shard in manifest.shards:
        path = f"{INDEXES}/{shard.name}.parquet"
        _add_index(figures, read_parquet(storage, path, INDEX, _INDEX_COLUMNS))
        path = f"{LEDGERS}/{shard.name}.parquet"
        columns = ("slot", "url", "stage", "status", "reason")
        _add_ledger(figures, read_parquet(storage, path, LEDGER, columns), fetch_stage)
    return figures


def host_of(url: str) -> str:
    """The host of a link, for counting; `(no host)` where it has none."""
    try:
        return urlsplit(url).hostname or "(no host)"
    except ValueError:
        return "(no host)"


def _add_index(figures: Figures, index: pa.Table) -> None:
    num_images = _numbers(index["num_images"])
    figures.images.add(num_images)
    figures.texts.add(_numbers(index["num_segments"]) - num_images)
    figures.text_length.add(_numbers(index["text_length"]))
    widths = _numbers(pc.list_flatten(index["image_widths"]))
    heights = _numbers(pc.list_flatten(index["image_heights"]))
    figures.side.add(np.minimum(widths, heights))
    members = pc.list_flatten(index["members"])
    is_text = pc.is_in(pc.struct_field(members, "name"), value_set=pa.array(["json", "txt"]))
    sizes = pc.struct_field(members, "size").filter(pc.invert(is_text))
    figures.image_bytes.add(_numbers(sizes) / 1000)
    _add_scores(figures, index["scores"].to_pylist())


def _add_scores(figures: Figures, rows: Sequence[Sequence[tuple[str, float]]]) -> None:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row:
            values.setdefault(name, []).append(value)
    for name, found in values.items():
        figures.scores.setdefault(name, Distribution()).add(np.array(found))


def _add_ledger(figures: Figures, ledger: pa.Table, fetch_stage: str) -> None:
    links = ledger.filter(pc.is_valid(ledger["slot"]))
    failed = links.filter(
        pc.and_(pc.equal(links["status"], DROPPED), pc.equal(links["stage"], fetch_stage))
    )
    kept = links.filter(pc.equal(links["status"], KEPT))
    for table in (failed, kept):
        urls = [url or "" for url in table["url"].to_pylist()]
        figures.hosts.add(urls, table["reason"].to_pylist())


def _numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)


def _rounded(values: np.ndarray) -> np.ndarray:
    size = np.floor(np.log10(np.abs(np.where(values == 0, 1, values))))
    step = 10.0 ** (size - _DIGITS + 1)
    return np.round(np.round(values / step) * step, 9)


def _first(reasons: Mapping[str, int]) -> str:
    return min(reasons, key=lambda word: (-reasons[word], word))


_WIDTH, _HEIGHT, _FLOOR = 320, 132, 108
_NUM_BINS = 24


def histogram(title: str, unit: str, values: Distribution, is_whole: bool) -> str:
    """A histogram with its median and mean in words; a note where there are no values."""
    if not values.size:
        caption = f"<figcaption><b>{safe(title)}</b></figcaption>"
        return f'<figure class="chart">{caption}<p class="quiet">No values.</p></figure>'
    edges, counts = bins(values, is_whole)
    top = max(counts)
    step = _WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{i * step + 0.75:.2f}" y="{_FLOOR - _bar(n, top):.2f}" width="{step - 1.5:.2f}" '
        f'height="{_bar(n, top):.2f}" rx="1.5"><title>{_range(edges[i], edges[i + 1], is_whole)}: '
        f"{n:,}</title></rect>"
        for i, n in enumerate(counts)
        if n
    )
    labels = "".join(
        f'<text x="{x:.1f}" y="126" text-anchor="{anchor}">{number(value)}</text>'
        for x, anchor, value in _ticks(edges, is_whole)
    )
    summary = f"median {number(values.median)} · mean {number(values.mean)} {unit}"
    return (
        f'<figure class="chart"><figcaption><b>{safe(title)}</b><span>{safe(summary)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{safe(f"{title}: {summary}")}">'
        f'<line x1="0" y1="{_FLOOR}.5" x2="{_WIDTH}" y2="{_FLOOR}.5"/>{bars}{labels}</svg></figure>'
    )


def bins(values: Distribution, is_whole: bool) -> tuple[list[float], list[int]]:
    """Edges (one more than bins) and counts; what lies above the 99.5th percentile is in the last bin."""
    low, high = min(values.counts), _percentile(values, 0.995)
    width = _nice((high - low) / _NUM_BINS) if high > low else (1.0 if is_whole else 0.01)
    if is_whole:
        width = max(1.0, math.ceil(width))
    start = math.floor(low / width) * width
    num_bins = max(1, int((high - start) / width + 1e-9) + 1)
    counts = [0] * num_bins
    for value, count in values.counts.items():
        counts[min(num_bins - 1, int((value - start) / width + 1e-9))] += count
    return [start + i * width for i in range(num_bins + 1)], counts


def bars(counts: Mapping[str, int], total: int, meanings: Mapping[str, str], kept: int) -> str:
    """What was kept, and below it each reason with its share and the sentence that explains it."""
    rows = [("kept", kept, "", "kept")]
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows += [(word, count, meanings.get(word, ""), "lost") for word, count in ranked]
    largest = max((count for _, count, _, _ in rows), default=0) or 1
    return '<div class="bars">' + "".join(_bar_row(*row, total, largest) for row in rows) + "</div>"


def _bar_row(word: str, count: int, meaning: str, kind: str, total: int, largest: int) -> str:
    share = f"{100 * count / total:.1f} %" if total else "–"
    explained = f'<p class="quiet">{safe(meaning)}</p>' if meaning else ""
    return (
        f'<div class="row {kind}"><div class="name"><code>{safe(word)}</code>'
        f"<span><b>{count:,}</b> {share}</span></div>"
        f'<div class="track"><i style="width:{100 * count / largest:.2f}%"></i></div>{explained}</div>'
    )


def safe(text: object) -> str:
    """Text from anywhere as HTML: escaped, control characters shown as �."""
    shown = "".join("\ufffd" if ord(c) < 32 and c not in "\n\t" else c for c in str(text))
    return escape(shown, quote=True)


def number(value: float) -> str:
    """A number for a person: 1,234 · 12.3 · 0.314."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def size(num_bytes: int) -> str:
    """A number of bytes for a person, in powers of 1,000."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _bar(count: int, top: int) -> float:
    return max(1.5, 100 * count / top)


def _range(low: float, high: float, is_whole: bool) -> str:
    if is_whole:
        return number(low) if high - low == 1 else f"{number(low)}–{number(high - 1)}"
    return f"{number(low)}–{number(high)}"


def _ticks(edges: list[float], is_whole: bool) -> list[tuple[float, str, float]]:
    num_bins = len(edges) - 1
    step = _WIDTH / num_bins
    if is_whole and edges[1] - edges[0] == 1 and num_bins <= 12:
        return [((i + 0.5) * step, "middle", edges[i]) for i in range(num_bins)]
    middle = num_bins // 2
    last = _WIDTH, "end", edges[-1]
    return [(0, "start", edges[0]), (middle * step, "middle", edges[middle]), last]


def _percentile(values: Distribution, share: float) -> float:
    seen, wanted = 0, share * values.size
    for value in sorted(values.counts):
        seen += values.counts[value]
        if seen >= wanted:
            return value
    return max(values.counts)


def _nice(width: float) -> float:
    size = 10.0 ** math.floor(math.log10(width))
    return next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= width * (1 - 1e-9))
