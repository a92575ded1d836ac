"""Figures of a published dataset, from streaming through its index and ledger once.

Memory does not grow with the dataset: distributions keep values rounded to three digits, hosts the most
frequent some thousands.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.storage import Storage
from pipelines.core.tables import read_parquet
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
