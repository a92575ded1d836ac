"""Charts for the report as inline SVG and HTML, coloured by the page's CSS variables."""

import math
from collections.abc import Mapping
from html import escape

from pipelines.publish.figures import Distribution

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
