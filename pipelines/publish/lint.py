"""What is wrong with a finished dataset, in words: its files against its manifest, and against each other.

Every file is read once, a shard at a time. Checked are

- the files: none is missing, none belongs to no shard of the manifest;
- the tars: bytes and hash, members named by the index and no others, samples that can be read, images that decode in
  the format and size that the index says;
- the indexes and ledgers: their schema, the values that follow from the samples, kept records = rows of the index,
  counts of the manifest;
- the keys: no key occurs twice, in one shard or in two;
- the features, where the manifest names some: a row for every image.

A damaged shard is looked through to its end, so that one can see whether one sample is lost or all.
"""

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import LedgerError
from pipelines.core.published import open_tar, read_sample
from pipelines.core.storage import Storage, read_arrow, read_parquet
from pipelines.core.validate import KeyRange, check_unique
from schemas.images import ImageError, decode_image, open_image
from schemas.manifest import Manifest, ShardEntry, Tally
from schemas.sample import Sample
from schemas.shard import FEATURES, INDEXES, LEDGERS, PARQUET, SHARDS, index_row
from schemas.tables import DROPPED, INDEX, KEPT, LEDGER
from schemas.validation import SchemaError

MAX_PER_KIND = 3
"""Problems of one kind told of one file; of further ones their number."""
_VARIES = re.compile(r"'[^']*'|[0-9a-f]{64}|-?[0-9][0-9,]*")
_CHUNK_BYTES = 1 << 22
_FORMATS = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@dataclass
class Lint:
    """The problems of a dataset, shard by shard; `finish` tells those that only all shards together show."""

    storage: Storage
    manifest: Manifest
    _records: Counter[str] = field(default_factory=Counter)
    _links: Counter[str] = field(default_factory=Counter)
    _ranges: list[KeyRange] = field(default_factory=list)
    _is_counted: bool = True

    def files(self) -> Iterator[str]:
        """Files that belong to no shard of the manifest."""
        known = {shard.name for shard in self.manifest.shards}
        suffixes = {SHARDS: ".tar", INDEXES: ".parquet", LEDGERS: ".parquet"}
        suffixes |= {FEATURES: ".arrow", PARQUET: ".parquet"}
        for folder, suffix in suffixes.items():
            for name in self.storage.list(folder):
                if not name.endswith(suffix) or name.removesuffix(suffix) not in known:
                    yield f"{folder}/{name}: belongs to no shard of the manifest"

    def shard(self, entry: ShardEntry) -> Iterator[str]:
        """What is wrong with the files of a shard, `FILE: problem`."""
        index = ledger = None
        names = {INDEXES: ".parquet", LEDGERS: ".parquet"}
        paths = {folder: f"{folder}/{entry.name}{suffix}" for folder, suffix in names.items()}
        try:
            index = read_parquet(self.storage, paths[INDEXES], INDEX)
            yield from _limited(paths[INDEXES], _index_problems(index, entry))
        except (SchemaError, OSError) as error:
            yield _told(paths[INDEXES], error)
        try:
            ledger = read_parquet(self.storage, paths[LEDGERS], LEDGER)
            yield from _limited(paths[LEDGERS], self._ledger_problems(entry, ledger, index))
        except (SchemaError, OSError) as error:
            self._is_counted = False
            yield _told(paths[LEDGERS], error)
        try:
            yield from _limited(entry.tar, self._tar_problems(entry, index))
        except (SchemaError, OSError) as error:
            yield _told(entry.tar, error)
        yield from self._feature_problems(entry, index)

    def finish(self) -> Iterator[str]:
        """Counts that differ from the manifest, and keys of two shards."""
        if self._is_counted:
            yield from _count_problems("records", self._records, self.manifest.records)
            yield from _count_problems("links", self._links, self.manifest.links)
        try:
            check_unique(self._ranges, self._keys)
        except LedgerError as error:
            yield f"{LEDGERS}: {error}"

    def _keys(self, shard: str) -> list[str]:
        ledger = read_parquet(self.storage, f"{LEDGERS}/{shard}.parquet", LEDGER, ("key", "slot"))
        return ledger.filter(pc.is_null(ledger["slot"]))["key"].to_pylist()

    def _ledger_problems(
        self, entry: ShardEntry, ledger: pa.Table, index: pa.Table | None
    ) -> Iterator[str]:
        is_record = pc.is_null(ledger["slot"])
        records, links = ledger.filter(is_record), ledger.filter(pc.invert(is_record))
        self._records.update(reason or KEPT for reason in records["reason"].to_pylist())
        self._links.update(reason or KEPT for reason in links["reason"].to_pylist())
        keys = records["key"].to_pylist()
        if keys:
            self._ranges.append(KeyRange(entry.name, min(keys), max(keys), len(keys)))
        yield from (f"record '{key}' occurs {n} times" for key, n in _doubled(keys))
        pairs = list(zip(links["key"].to_pylist(), links["slot"].to_pylist(), strict=True))
        yield from (
            f"link {slot} of '{key}' occurs {n} times" for (key, slot), n in _doubled(pairs)
        )
        orphans = sorted({key for key, _ in pairs} - set(keys))
        yield from (f"'{key}' has links, but no row of its own" for key in orphans)
        wrong = pc.equal(pc.equal(ledger["status"], KEPT), pc.is_valid(ledger["reason"]))
        for row in ledger.filter(wrong).select(["key", "status"]).to_pylist():
            has = "a reason" if row["status"] == KEPT else "no reason"
            yield f"'{row['key']}' is {row['status']} with {has}"
        if index is not None:
            kept = set(records.filter(pc.equal(records["status"], KEPT))["key"].to_pylist())
            indexed = set(index["key"].to_pylist())
            yield from (f"'{key}' is kept, but not in the index" for key in sorted(kept - indexed))
            yield from (f"'{key}' is in the index, but not kept" for key in sorted(indexed - kept))

    def _tar_problems(self, entry: ShardEntry, index: pa.Table | None) -> Iterator[str]:
        num_bytes, digest = 0, hashlib.sha256()
        with open_tar(self.storage, entry) as tar:
            while chunk := tar.read(_CHUNK_BYTES):
                num_bytes += len(chunk)
                digest.update(chunk)
            if num_bytes != entry.num_bytes:
                yield f"has {num_bytes:,} bytes, the manifest says {entry.num_bytes:,}"
            if digest.hexdigest() != entry.sha256:
                yield f"its sha256 is {digest.hexdigest()}, the manifest says {entry.sha256}"
            if index is None:
                return
            rows = index.to_pylist()
            tar.seek(0)
            if entry.path is None:
                yield from _member_problems(tar, rows)
            for row in rows:
                try:
                    yield from _sample_problems(read_sample(tar, row, entry), row)
                except (SchemaError, OSError, ValueError) as error:  # places may be anywhere
                    yield str(error).removeprefix(f"{entry.name}.tar: ")

    def _feature_problems(self, entry: ShardEntry, index: pa.Table | None) -> Iterator[str]:
        if self.manifest.features is None:
            return
        path = f"{FEATURES}/{entry.name}.arrow"
        try:
            features = read_arrow(self.storage, path)
        except (SchemaError, OSError, pa.ArrowInvalid) as error:
            yield _told(path, error)
            return
        if index is not None:
            wanted = [k for k, n in _columns(index, "key", "num_images") for _ in range(n)]
            if "key" not in features.column_names or features["key"].to_pylist() != wanted:
                yield f"{path}: its rows are not the images of the index"


def _index_problems(index: pa.Table, entry: ShardEntry) -> Iterator[str]:
    if index.num_rows != entry.num_samples:
        yield f"has {index.num_rows} rows, the manifest says {entry.num_samples} samples"
    num_images = pc.sum(index["num_images"]).as_py() or 0
    if num_images != entry.num_images:
        yield f"has {num_images} images, the manifest says {entry.num_images}"
    yield from (f"key '{key}' occurs {n} times" for key, n in _doubled(index["key"].to_pylist()))
    for key, shard in _columns(index, "key", "shard"):
        if shard != entry.name:
            yield f"'{key}' is said to be in shard '{shard}'"


def _member_problems(tar: Any, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Members of a tar against the places that an index gives."""
    placed = {
        f"{row['key']}.{m['name']}": (m["offset"], m["size"])
        for row in rows
        for m in row["members"]
    }
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=tar, mode="r:") as archive:
            for info in archive:
                if info.name in found:
                    yield f"member '{info.name}' is there twice"
                found[info.name] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        yield f"is not a whole tar file: {error}"
    yield from (f"member '{name}' is not in the index" for name in found if name not in placed)
    for name, place in placed.items():
        if name not in found:
            yield f"member '{name}' is missing"
        elif found[name] != place:
            is_, says = found[name], place
            yield (
                f"member '{name}' has {is_[1]:,} bytes at {is_[0]:,}, the index says {says[1]:,} "
                f"at {says[0]:,}"
            )


def _sample_problems(sample: Sample, row: Mapping[str, Any]) -> Iterator[str]:
    """A sample against its row of the index; its images, decoded."""
    wanted = index_row(sample, row["shard"], row["members"])
    for name, value in wanted.items():
        if row[name] != value and repr(row[name]) != repr(value):  # NaN differs from itself
            said = f"{_short(value)}, the index says {_short(row[name])}"
            yield f"sample '{sample.key}': {name} is {said}"
    for number, image in enumerate(sample.images):
        where = f"sample '{sample.key}', image {number}"
        try:
            opened = open_image(image.image or b"")
            size = decode_image(image.image or b"").size
        except ImageError as error:
            yield f"{where}: does not decode: {error}"
            continue
        if _FORMATS.get(opened.format) != image.format:
            yield f"{where}: is {opened.format}, its name says {image.format}"
        if size != (image.width, image.height):
            said = f"the sample says {image.width} x {image.height}"
            yield f"{where}: has {size[0]} x {size[1]} pixels, {said}"


def _count_problems(name: str, found: Counter[str], tally: Tally) -> Iterator[str]:
    said = {KEPT: tally.kept} | dict(tally.dropped)
    for word in sorted(found.keys() | said.keys()):
        if found[word] != said.get(word, 0):
            what = KEPT if word == KEPT else f"{DROPPED} as {word}"
            yield (
                f"manifest.json: says {said.get(word, 0):,} {name} {what}, the ledgers have "
                f"{found[word]:,}"
            )


def _columns(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _doubled(values: list[Any]) -> Iterator[tuple[Any, int]]:
    return ((value, n) for value, n in sorted(Counter(values).items()) if n > 1)


def _limited(path: str, problems: Iterator[str]) -> Iterator[str]:
    """The first problems of each kind, and how many more there are; those of a kind differ in names and numbers."""
    counts: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for problem in problems:
        kind = _VARIES.sub("", problem)
        counts[kind] += 1
        firsts.setdefault(kind, problem)
        if counts[kind] <= MAX_PER_KIND:
            yield f"{path}: {problem}"
    for kind, n in counts.items():
        if n > MAX_PER_KIND:
            yield f"{path}: {n - MAX_PER_KIND:,} more such as: {firsts[kind]}"


def _told(path: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(path) else f"{path}: {text}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
