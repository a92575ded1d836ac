"""The ledger invariant, checked on the published files of a dataset, whichever way they were written.

Every input record occurs in the ledger exactly once, kept or dropped with a reason (one that was divided: each of its
parts, see `division`); every link once; kept records = rows of the index = samples in the tar; no key occurs in two
shards. The counts come from the files: the number of records from the plan (or from what was read, where the plan
does not know), rows from ledger and index, bytes from the tar itself.

Of a shard that was checked, its entry and its first and last key stay in memory; all else is added up.
"""

import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.contracts import ABOUT_KEY, READ, Counts, merged, tally
from pipelines.core.pipeline import LedgerError, ShardPlan
from pipelines.core.published import tar_of
from pipelines.core.storage import Storage, read_parquet, read_parquet_metadata
from schemas.manifest import ShardEntry, Tally
from schemas.shard import INDEXES, LEDGERS, SHARDS
from schemas.tables import DROPPED, INDEX, KEPT, LEDGER
from schemas.tar_writer import BLOCK

SHOWN = 5
CHECK_THREADS = 8
"""Shards of an object store that are checked at a time, since each read waits."""
LOCAL_CHECK_THREADS = 2
"""The same of a local folder: with each thread the process keeps more memory that it has freed."""


@dataclass
class DatasetFacts:
    """What the files of all shards say: their entries in order, and sums of their tallies and counts."""

    entries: list[ShardEntry] = field(default_factory=list)
    records: Tally = field(default_factory=lambda: Tally(0, 0))
    links: Tally = field(default_factory=lambda: Tally(0, 0))
    counts: Counts = field(default_factory=dict)
    ranges: list["KeyRange"] = field(default_factory=list)
    """Of the shards that have keys."""

    def add(self, facts: "ShardFacts") -> None:
        """Take in the next shard."""
        self.entries.append(facts.entry)
        self.records = _added(self.records, facts.records)
        self.links = _added(self.links, facts.links)
        self.counts = merged(self.counts, facts.counts)
        if facts.first_key is not None and facts.last_key is not None:
            bounds = facts.first_key, facts.last_key
            self.ranges.append(KeyRange(facts.entry.name, *bounds, facts.records.total))


@dataclass(frozen=True)
class ShardFacts:
    """What the files of one shard say: its entry, tallies, counts by stage, first and last key."""

    entry: ShardEntry
    records: Tally
    links: Tally
    counts: Counts
    first_key: str | None
    last_key: str | None


def check_dataset(storage: Storage, shards: Sequence[ShardPlan]) -> DatasetFacts:
    """The facts of all published shards; raises `LedgerError` if they do not add up."""
    check_files(storage, (s.name for s in shards))
    found = DatasetFacts()
    for facts in _checked(storage, shards):
        found.add(facts)
    check_unique(found.ranges, partial(_keys, storage))
    return found


def _checked(storage: Storage, shards: Sequence[ShardPlan]) -> Iterator[ShardFacts]:
    """The facts of each shard in order; threads check a few shards ahead, however many there are."""
    num_threads = LOCAL_CHECK_THREADS if storage.is_local else CHECK_THREADS
    ahead: deque[Future[ShardFacts]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for shard in shards:
            ahead.append(pool.submit(_check, storage, shard))
            if len(ahead) > 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _check(storage: Storage, shard: ShardPlan) -> ShardFacts:
    facts = check_shard(storage, shard)
    # Every thread keeps what Arrow has freed, more with each shard, until it is told to let go.
    pa.default_memory_pool().release_unused()
    return facts


def _keys(storage: Storage, shard: str) -> list[str]:
    rows = read_parquet(storage, f"{LEDGERS}/{shard}.parquet", LEDGER, ["key", "slot"])
    return rows.filter(rows.column("slot").is_null()).column("key").to_pylist()


def _added(one: Tally, other: Tally) -> Tally:
    return Tally(one.total + other.total, one.kept + other.kept, merged(one.dropped, other.dropped))


def check_shard(storage: Storage, plan: ShardPlan) -> ShardFacts:
    """The facts of a published shard; raises `LedgerError` naming the shard and the first keys."""
    name = plan.name
    _check_exist(storage, name, (f"{INDEXES}/{name}.parquet", f"{LEDGERS}/{name}.parquet"))
    ledger = read_parquet(storage, f"{LEDGERS}/{name}.parquet", LEDGER)
    index = read_parquet(storage, f"{INDEXES}/{name}.parquet", INDEX)
    about = _about(storage, name)
    entry = ShardEntry(**about["entry"])
    tars, tar = tar_of(storage, entry)
    _check_exist(tars, name, (tar,))
    is_record = pc.is_null(ledger.column("slot"))
    records, links = ledger.filter(is_record), ledger.filter(pc.invert(is_record))
    num_read = about["stages"][READ]["seen"] if plan.num_records is None else plan.num_records
    _check_records(name, records, num_read)
    _check_links(name, records, links)
    _check_reasons(name, ledger)
    _check_index(name, records, index, entry)
    if entry.path is None:
        _check_tar(storage, name, index, entry)
    elif tars.size(tar) != entry.num_bytes:
        raise LedgerError(f"shard '{name}': '{tars.address(tar)}' changed while it was read")
    bounds = pc.min_max(records.column("key")).as_py()
    return ShardFacts(
        entry, _tally(records), _tally(links), about["stages"], bounds["min"], bounds["max"]
    )


def check_files(storage: Storage, shards: Iterable[str]) -> None:
    """Raise `LedgerError` if the dataset holds files of shards that are not planned."""
    known = set(shards)
    for folder, suffix in ((SHARDS, ".tar"), (INDEXES, ".parquet"), (LEDGERS, ".parquet")):
        unknown = [n for n in storage.list(folder) if n.removesuffix(suffix) not in known]
        if unknown:
            raise LedgerError(
                f"'{storage.address(folder)}' holds files of no shard of this build: {unknown[:SHOWN]}"
            )


def _check_exist(storage: Storage, name: str, paths: Sequence[str]) -> None:
    missing = [p for p in paths if not storage.exists(p)]
    if missing:
        raise LedgerError(f"shard '{name}': {missing} missing in '{storage.root}'")


def _about(storage: Storage, name: str) -> dict[str, Any]:
    found = read_parquet_metadata(storage, f"{LEDGERS}/{name}.parquet").get(ABOUT_KEY)
    if found is None:
        raise LedgerError(f"shard '{name}': its ledger does not carry the shard's entry")
    return json.loads(found)


def _check_records(name: str, records: pa.Table, num_records: int) -> None:
    doubled = _doubled(records, ["key"])
    if doubled:
        raise LedgerError(f"shard '{name}': records more than once in the ledger: {doubled}")
    # A record that was divided has a row for each of its parts.
    num_found = records.group_by(["source", "record"]).aggregate([]).num_rows
    if num_found != num_records:
        keys = records.column("key")[:SHOWN].to_pylist()
        raise LedgerError(
            f"shard '{name}': the input has {num_records} records, the ledger {num_found} "
            f"(first keys: {keys})"
        )


def _check_links(name: str, records: pa.Table, links: pa.Table) -> None:
    doubled = _doubled(links, ["key", "slot"])
    if doubled:
        raise LedgerError(f"shard '{name}': links more than once in the ledger: {doubled}")
    orphans = _first_not_in(links.column("key"), records.column("key"))
    if orphans:
        raise LedgerError(f"shard '{name}': links of records that are not in the ledger: {orphans}")
    kept = links.filter(pc.equal(links.column("status"), KEPT)).column("key")
    lost = records.filter(pc.equal(records.column("status"), DROPPED)).column("key")
    inside = kept.filter(pc.is_in(kept, value_set=lost))
    if len(inside):
        shown = inside[:SHOWN].to_pylist()
        raise LedgerError(f"shard '{name}': links kept though their record is dropped: {shown}")


def _check_reasons(name: str, ledger: pa.Table) -> None:
    is_kept = pc.equal(ledger.column("status"), KEPT)
    wrong = ledger.filter(pc.equal(is_kept, pc.is_valid(ledger.column("reason"))))
    if wrong.num_rows:
        shown = wrong.column("key")[:SHOWN].to_pylist()
        raise LedgerError(f"shard '{name}': rows kept with a reason or dropped without: {shown}")


def _check_index(name: str, records: pa.Table, index: pa.Table, entry: ShardEntry) -> None:
    doubled = _doubled(index, ["key"])
    if doubled:
        raise LedgerError(f"shard '{name}': samples more than once in the index: {doubled}")
    kept = records.filter(pc.equal(records.column("status"), KEPT)).column("key")
    missing, extra = (
        _first_not_in(kept, index.column("key")),
        _first_not_in(index.column("key"), kept),
    )
    if missing or extra:
        raise LedgerError(
            f"shard '{name}': kept but not in the index: {missing}; in the index but not kept: {extra}"
        )
    images = pc.sum(index.column("num_images")).as_py() or 0
    if (index.num_rows, images) != (entry.num_samples, entry.num_images):
        raise LedgerError(
            f"shard '{name}': its entry says {entry.num_samples} samples, {entry.num_images} images, "
            f"the index {index.num_rows} and {images}"
        )
    elsewhere = pc.unique(index.column("shard")).to_pylist()
    if elsewhere not in ([], [name]):
        raise LedgerError(f"shard '{name}': its index names other shards: {elsewhere[:SHOWN]}")


def _check_tar(storage: Storage, name: str, index: pa.Table, entry: ShardEntry) -> None:
    """The members of the index fill the tar to its last byte, so it holds them and no others."""
    members = pc.list_flatten(index.column("members")).combine_chunks()
    offsets = pc.struct_field(members, "offset").to_pylist()
    sizes = pc.struct_field(members, "size").to_pylist()
    position = 0
    for offset, size in zip(offsets, sizes, strict=True):
        if offset != position + BLOCK:
            raise LedgerError(f"shard '{name}': the tar has a gap at byte {position}")
        position = offset + size + -size % BLOCK
    expected, found = position + 2 * BLOCK, storage.size(f"{SHARDS}/{name}.tar")
    if not expected == found == entry.num_bytes:
        raise LedgerError(
            f"shard '{name}': the tar has {found} bytes, the index accounts for {expected}, the "
            f"shard's entry says {entry.num_bytes}"
        )


def _doubled(table: pa.Table, columns: list[str]) -> list[Any]:
    counted = table.group_by(columns).aggregate([([], "count_all")])
    more = counted.filter(pc.greater(counted.column("count_all"), 1)).select(columns)
    rows = more.slice(0, SHOWN).to_pylist()
    return [tuple(row.values()) if len(columns) > 1 else row[columns[0]] for row in rows]


def _first_not_in(values: pa.ChunkedArray, known: pa.ChunkedArray) -> list[Any]:
    absent = values.filter(pc.invert(pc.is_in(values, value_set=known)))
    return absent[:SHOWN].to_pylist()


def _tally(rows: pa.Table) -> Tally:
    kept = pc.sum(pc.equal(rows.column("status"), KEPT)).as_py() or 0
    return Tally(rows.num_rows, kept, tally(rows.column("reason")))


PORTION = 2_000_000
"""Keys held at a time, at most about 300 MB."""


@dataclass(frozen=True)
class KeyRange:
    """First and last key of a shard, and how many it has."""

    shard: str
    first: str
    last: str
    num_keys: int


def check_unique(
    ranges: Iterable[KeyRange],
    read_keys: Callable[[str], Iterable[str]],
    portion: int = PORTION,
) -> None:
    """Raise `LedgerError` naming a key that two shards hold, and the shards.

    Keys derived from file and line give ranges that do not overlap; then nothing is read. Where ranges
    overlap, the keys of those shards are read, `portion` of them at a time.
    """
    for group in _overlapping(sorted(ranges, key=lambda r: (r.first, r.last))):
        total = sum(r.num_keys for r in group)
        num_passes = -(-total // portion)
        for number in range(num_passes):
            _check_portion(group, read_keys, number, num_passes)


def _overlapping(ranges: Sequence[KeyRange]) -> Iterator[list[KeyRange]]:
    group: list[KeyRange] = []
    last = ""
    for current in ranges:
        if group and current.first > last:
            if len(group) > 1:
                yield group
            group = []
        group.append(current)
        last = max(last, current.last)
    if len(group) > 1:
        yield group


def _check_portion(
    group: Sequence[KeyRange], read_keys: Callable[[str], Iterable[str]], number: int, total: int
) -> None:
    seen: dict[str, str] = {}
    for current in group:
        for key in read_keys(current.shard):
            if zlib.crc32(key.encode()) % total != number:
                continue
            if key in seen:
                raise LedgerError(
                    f"key '{key}' occurs in shard '{seen[key]}' and in shard '{current.shard}'"
                )
            seen[key] = current.shard
