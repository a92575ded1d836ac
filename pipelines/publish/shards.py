"""Published shards: the sink that writes them, samples read back from them, and statistics of a whole dataset.

The statistics take one pass over the indexes and the ledgers. Their memory does not grow with the dataset:
distributions keep values rounded to three significant digits, host counts keep the most frequent hosts.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.storage import Storage, read_parquet, write_parquet
from schemas.manifest import Manifest, ShardEntry
from schemas.sample import SAMPLES, Sample, sample_from_row
from schemas.shard import INDEXES, LEDGERS, SHARDS, decode_members, write_tar
from schemas.tables import DROPPED, INDEX, KEPT, LEDGER

MAX_HOSTS = 4096
_ROWS_AT_ONCE = 32
_DIGITS = 3
_INDEX_COLUMNS = (
    *("members", "num_segments", "num_images", "text_length"),
    *("image_widths", "image_heights", "scores"),
)
_LEDGER_COLUMNS = ("slot", "url", "stage", "status", "reason")


@dataclass(frozen=True)
class ShardSink:
    """A `Sink`: writes `shards/<name>.tar`, then `index/<name>.parquet`, each atomically."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        """Write the columns of `SAMPLES` as a shard; its hash is computed while the bytes are written."""

        def write(file: BinaryIO) -> tuple[list[dict[str, Any]], _HashedFile]:
            hashed = _HashedFile(file)
            return write_tar(cast(BinaryIO, hashed), _samples(table), shard), hashed

        written = storage.commit(f"{SHARDS}/{shard}.tar", write)
        assert written is not None, shard
        rows, hashed = written
        write_parquet(storage, f"{INDEXES}/{shard}.parquet", INDEX.table(rows), INDEX)
        return ShardEntry(
            name=shard,
            num_samples=len(rows),
            num_images=sum(row["num_images"] for row in rows),
            num_bytes=hashed.num_bytes,
            sha256=hashed.digest.hexdigest(),
        )


def read_sample(tar: BinaryIO, row: Mapping[str, Any], shard: str) -> Sample:
    """The sample of an index row (`key`, `members`), read from its position in the open tar.

    Raises:
        SchemaError: the bytes there are not that sample.
    """
    members = {}
    for member in row["members"]:
        tar.seek(member["offset"])
        members[member["name"]] = tar.read(member["size"])
    return decode_members(row["key"], members, f"{shard}.tar")


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
            with storage.open(f"{SHARDS}/{shard.name}.tar") as tar:
                for row in index.to_pylist():
                    yield read_sample(tar, row, shard.name)


class _HashedFile:
    """A file opened for writing that counts and hashes its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.num_bytes += len(data)
        self.digest.update(data)
        return self.file.write(data)


def _samples(table: pa.Table) -> Iterator[Sample]:
    columns = table.select([c.name for c in SAMPLES.columns])
    for batch in columns.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from map(sample_from_row, batch.to_pylist())


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
    def size(self) -> int:
        """Number of values counted."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Mean of all values; 0 where there are none."""
        return self.total / self.size if self.size else 0.0

    @property
    def median(self) -> float:
        """Median of all values to three digits; 0 where there are none."""
        return self.quantile(0.5) if self.counts else 0.0

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of the values does not exceed."""
        seen, wanted = 0, share * self.size
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return value
        return max(self.counts)


@dataclass
class Hosts:
    """For the hosts with the most failed links: how many failed, why, and how many were kept.

    Above `MAX_HOSTS` the less frequent half is forgotten: the counts of hosts that are rare at first are too small.
    """

    failed: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, urls: Iterable[str], reasons: Iterable[str | None]) -> None:
        """Count links; a link without a reason was kept."""
        for url, reason in zip(urls, reasons, strict=True):
            host = host_of(url)
            if reason is None:
                self.kept[host] += 1
            else:
                self.failed[host] += 1
                self.reasons.setdefault(host, Counter())[reason] += 1
        self._forget()

    def worst(self, num_hosts: int) -> list[tuple[str, int, int, str]]:
        """Host, links failed, links kept, most frequent reason."""
        ranked = sorted(self.failed.items(), key=lambda item: (-item[1], item[0]))
        return [(h, n, self.kept[h], self._main_reason(h)) for h, n in ranked[:num_hosts]]

    def _main_reason(self, host: str) -> str:
        return min(self.reasons[host].items(), key=lambda item: (-item[1], item[0]))[0]

    def _forget(self) -> None:
        for counter in (self.failed, self.kept):
            if len(counter) > MAX_HOSTS:
                frequent = counter.most_common(MAX_HOSTS // 2)
                counter.clear()
                counter.update(dict(frequent))
        self.reasons = {h: r for h, r in self.reasons.items() if h in self.failed}


@dataclass
class Statistics:
    """The distributions and hosts of a dataset."""

    images: Distribution = field(default_factory=Distribution)
    """Images per sample."""
    texts: Distribution = field(default_factory=Distribution)
    """Text segments per sample."""
    text_length: Distribution = field(default_factory=Distribution)
    """Characters per sample."""
    side: Distribution = field(default_factory=Distribution)
    """Shorter side of each image, in pixels."""
    image_bytes: Distribution = field(default_factory=Distribution)
    """Size of each image file, in kilobytes (1,000 bytes)."""
    scores: dict[str, Distribution] = field(default_factory=dict)
    """By name of the score, one value per sample."""
    hosts: Hosts = field(default_factory=Hosts)


def collect_statistics(storage: Storage, manifest: Manifest, fetch_stage: str) -> Statistics:
    """The statistics of all shards; links dropped by `fetch_stage` count as failures of their hosts."""
    found = Statistics()
    for shard in manifest.shards:
        path = f"{INDEXES}/{shard.name}.parquet"
        _add_index(found, read_parquet(storage, path, INDEX, _INDEX_COLUMNS))
        path = f"{LEDGERS}/{shard.name}.parquet"
        _add_ledger(found.hosts, read_parquet(storage, path, LEDGER, _LEDGER_COLUMNS), fetch_stage)
    return found


def _add_index(found: Statistics, index: pa.Table) -> None:
    num_images = _numbers(index["num_images"])
    found.images.add(num_images)
    found.texts.add(_numbers(index["num_segments"]) - num_images)
    found.text_length.add(_numbers(index["text_length"]))
    widths = _numbers(pc.list_flatten(index["image_widths"]))
    heights = _numbers(pc.list_flatten(index["image_heights"]))
    found.side.add(np.minimum(widths, heights))
    members = pc.list_flatten(index["members"])
    is_text = pc.is_in(pc.struct_field(members, "name"), value_set=pa.array(["json", "txt"]))
    sizes = pc.struct_field(members, "size").filter(pc.invert(is_text))
    found.image_bytes.add(_numbers(sizes) / 1000)
    scores: dict[str, list[float]] = {}
    for row in index["scores"].to_pylist():
        for name, value in row:
            scores.setdefault(name, []).append(value)
    for name, values in scores.items():
        found.scores.setdefault(name, Distribution()).add(np.array(values))


def _add_ledger(hosts: Hosts, ledger: pa.Table, fetch_stage: str) -> None:
    links = ledger.filter(pc.is_valid(ledger["slot"]))
    is_dropped = pc.equal(links["status"], DROPPED)
    failed = links.filter(pc.and_(is_dropped, pc.equal(links["stage"], fetch_stage)))
    kept = links.filter(pc.equal(links["status"], KEPT))
    for table in (failed, kept):
        hosts.add([url or "" for url in table["url"].to_pylist()], table["reason"].to_pylist())


def host_of(url: str) -> str:
    """The host of a link, for counting; `(no host)` where it has none."""
    try:
        return urlsplit(url).hostname or "(no host)"
    except ValueError:
        return "(no host)"


def _numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)


def _rounded(values: np.ndarray) -> np.ndarray:
    size = np.floor(np.log10(np.abs(np.where(values == 0, 1, values))))
    step = 10.0 ** (size - _DIGITS + 1)
    return np.round(np.round(values / step) * step, 9)
