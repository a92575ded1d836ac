"""`report.html`: what a dataset contains, what was dropped and why, and some of its samples.

One self-contained file: styles, charts and thumbnails are inline, there are no scripts, and its content security
policy forbids the browser to load or run anything. This module computes the data, the templates in `templates/` hold
the markup and escape every value. Equal datasets give equal reports.

The statistics take one pass over the indexes and the ledgers. Their memory does not grow with the dataset:
distributions keep values rounded to three significant digits, host counts keep the hosts with the most failed links.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import Reasons
from pipelines.core.storage import Storage, read_parquet
from pipelines.publish.cards import card_parts, clock, pick_samples, thumbnail
from schemas.manifest import REPORT_FILE, Manifest
from schemas.shard import INDEXES, LEDGERS
from schemas.tables import DROPPED, INDEX, KEPT, LEDGER

SCORE = "score "
"""Prefix of the names of distributions of scores."""
DEDUP = "dedup"
"""The stage that drops duplicates."""
MAX_HOSTS = 4096
_NUM_HOSTS_SHOWN, _NUM_BINS = 12, 24
_INDEX_COLUMNS = (
    *("members", "num_segments", "num_images", "text_length"),
    *("image_widths", "image_heights", "scores"),
)
_LEDGER_COLUMNS = ("slot", "url", "stage", "status", "reason")


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
        html = self.render(storage, manifest, reasons)
        storage.commit(REPORT_FILE, html.encode("utf-8", errors="replace"))

    def render(self, storage: Storage, manifest: Manifest, reasons: Reasons) -> str:
        """The page."""
        distributions, hosts = collect_statistics(storage, manifest, self.fetch_stage)
        page = _templates().get_template("report.html.jinja")
        return page.render(
            report=self,
            meanings={word: reason.meaning for word, reason in reasons.items()},
            manifest=manifest,
            num_bytes=sum(s.num_bytes for s in manifest.shards),
            distributions=distributions,
            charts=[histogram(*chart) for chart in self._charts(distributions)],
            samples=pick_samples(storage, manifest, self.num_cards),
            hosts=hosts.worst(_NUM_HOSTS_SHOWN),
            groups=_groups(storage, manifest),
            stages=sorted(manifest.stages.items(), key=_stage_order),
            settings=list(flatten(manifest.config)),
            fingerprint=vars(manifest.fingerprint),
        )

    def _charts(
        self, found: dict[str, Distribution]
    ) -> Iterator[tuple[str, str, Distribution, bool]]:
        """Title, unit, values, and whether these are whole numbers."""
        yield f"Images per {self.record_word}", "", found["images"], True
        yield f"Text segments per {self.record_word}", "", found["texts"], True
        yield f"Text per {self.record_word}", "characters", found["text_length"], True
        for key in sorted(key for key in found if key.startswith(SCORE)):
            name = key.removeprefix(SCORE)
            is_whole = all(float(value).is_integer() for value in found[key].counts)
            yield self.score_titles.get(name, name), "", found[key], is_whole
        yield "Shorter side of an image", "pixels", found["side"], True
        yield "Size of an image", "kB", found["image_kb"], False


@dataclass
class Distribution:
    """How often each value occurred; values are rounded to three significant digits."""

    counts: Counter[float] = field(default_factory=Counter)
    total: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count the values; NaN and infinities are left out."""
        values = values[np.isfinite(values)]
        found, counts = np.unique(_rounded(values), return_counts=True)
        self.counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.total += float(values.sum())

    @property
    def mean(self) -> float:
        """Mean of all values; 0 where there are none."""
        return self.total / self.counts.total() if self.counts else 0.0

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of the values does not exceed."""
        seen, wanted = 0, share * self.counts.total()
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return value
        return max(self.counts)


@dataclass
class Hosts:
    """The links of the hosts with the most failed links, by host and reason (null: kept).

    Above `MAX_HOSTS` half of them are forgotten, those with the fewest failed links: their counts start again at 0.
    """

    links: dict[str, Counter[str | None]] = field(default_factory=dict)

    def add(self, urls: Iterable[str], reasons: Iterable[str | None]) -> None:
        """Count links; a link without a reason was kept."""
        for url, reason in zip(urls, reasons, strict=True):
            self.links.setdefault(host_of(url), Counter())[reason] += 1
        if len(self.links) > MAX_HOSTS:
            self.links = dict(self._ranked()[: MAX_HOSTS // 2])

    def worst(self, num_hosts: int) -> list[tuple[str, int, int, str]]:
        """Host, links failed, links kept, most frequent reason; hosts without failed links are left out."""
        found = []
        for host, links in self._ranked()[:num_hosts]:
            failed = {reason: count for reason, count in links.items() if reason is not None}
            if failed:
                reason = ranked_counts(failed)[0][0]
                found.append((host, sum(failed.values()), links[None], reason))
        return found

    def _ranked(self) -> list[tuple[str, Counter[str | None]]]:
        return sorted(self.links.items(), key=lambda i: (i[1][None] - i[1].total(), i[0]))


def collect_statistics(
    storage: Storage, manifest: Manifest, fetch_stage: str
) -> tuple[dict[str, Distribution], Hosts]:
    """Distributions by name (see `_values`), and the hosts of links that `fetch_stage` dropped or that were kept."""
    found: dict[str, Distribution] = defaultdict(Distribution)
    hosts = Hosts()
    for shard in manifest.shards:
        path = f"{INDEXES}/{shard.name}.parquet"
        for name, values in _values(read_parquet(storage, path, INDEX, _INDEX_COLUMNS)):
            found[name].add(values)
        path = f"{LEDGERS}/{shard.name}.parquet"
        _add_links(hosts, read_parquet(storage, path, LEDGER, _LEDGER_COLUMNS), fetch_stage)
    return found, hosts


def _values(index: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """The values of a shard: one per sample, or one per image for `side` (pixels) and `image_kb` (1,000 bytes)."""
    num_images = _numbers(index["num_images"])
    yield "images", num_images
    yield "texts", _numbers(index["num_segments"]) - num_images
    yield "text_length", _numbers(index["text_length"])
    widths, heights = (pc.list_flatten(index[f"image_{side}s"]) for side in ("width", "height"))
    yield "side", np.minimum(_numbers(widths), _numbers(heights))
    members = pc.list_flatten(index["members"])
    is_text = pc.is_in(pc.struct_field(members, "name"), value_set=pa.array(["json", "txt"]))
    yield "image_kb", _numbers(pc.struct_field(members, "size").filter(pc.invert(is_text))) / 1000
    scores = [score for row in index["scores"].to_pylist() for score in row]
    for name in sorted({name for name, _ in scores}):
        yield SCORE + name, np.array([value for other, value in scores if other == name])


def _add_links(hosts: Hosts, ledger: pa.Table, fetch_stage: str) -> None:
    is_kept = pc.equal(ledger["status"], KEPT)
    is_failed = pc.and_(pc.equal(ledger["status"], DROPPED), pc.equal(ledger["stage"], fetch_stage))
    links = ledger.filter(pc.and_(pc.is_valid(ledger["slot"]), pc.or_(is_kept, is_failed)))
    hosts.add([url or "" for url in links["url"].to_pylist()], links["reason"].to_pylist())


def host_of(url: str) -> str:
    """The host of a link, for counting; `(no host)` where it has none."""
    try:
        return urlsplit(url).hostname or "(no host)"
    except ValueError:
        return "(no host)"


def _numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)


def _rounded(values: np.ndarray) -> np.ndarray:  # to three significant digits
    size = np.floor(np.log10(np.abs(np.where(values == 0, 1, values))))
    step = 10.0 ** (size - 2)
    return np.round(np.round(values / step) * step, 9)


@dataclass(frozen=True)
class Histogram:
    """The data of one histogram: bars as (range in words, count), ticks as (fraction of the width, anchor, label)."""

    title: str
    unit: str
    values: Distribution
    bars: Sequence[tuple[str, int]] = ()
    ticks: Sequence[tuple[float, str, str]] = ()


def _groups(storage: Storage, manifest: Manifest) -> Sequence[Any]:
    """The largest groups of duplicates, where a stage has dropped some."""
    if DEDUP not in manifest.stages:
        return ()
    from pipelines.publish.duplicates import largest_groups

    return largest_groups(storage, manifest)


def histogram(title: str, unit: str, values: Distribution, is_whole: bool) -> Histogram:
    """A histogram of the values; without bars where there are none."""
    if not values.counts:
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


def _stage_order(stage: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    """Sort key for the order in which the stages ran: a later one sees fewer records and links."""
    label, counts = stage
    num_links = (counts.get("links") or {}).get("seen", 0)
    return (-counts.get("seen", 0), label != "read", -num_links, label)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
        "card_parts": card_parts,
        "clock": clock,
        "number": number,
        "percent": lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "–",
        "ranked": ranked_counts,
        "size": size,
        "thumbnail": thumbnail,
    }
    return found


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")


def _printable(value: Any) -> Any:
    """Text with its control characters shown as U+FFFD; markup of our own templates is left as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _CONTROL.sub("\ufffd", value)
