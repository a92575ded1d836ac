"""The ledger invariant holds on the files themselves, or there is no manifest."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numbers_pipeline import NumberSource, TarSink, numbers_pipeline

from pipelines.core.pipeline import LedgerError, ShardPlan
from pipelines.core.run import run
from pipelines.core.storage import Storage
from pipelines.core.validate import KeyRange, check_shard, check_unique
from schemas.manifest import ShardEntry

SHARD = "numbers-000001"
PLAN = ShardPlan(SHARD, 10, ())


@dataclass(frozen=True)
class ForgetfulSink(TarSink):
    """Leaves the first sample out."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        return super().write(shard, table.slice(1), storage)


@dataclass(frozen=True)
class DoublingSink(TarSink):
    """Writes the first sample twice."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        return super().write(shard, pa.concat_tables([table.slice(0, 1), table]), storage)


@dataclass(frozen=True)
class BoastfulSink(TarSink):
    """Says one sample too many."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        entry = super().write(shard, table, storage)
        return replace(entry, num_samples=entry.num_samples + 1)


@dataclass(frozen=True)
class TruncatingSink(TarSink):
    """Cuts the tar short after writing it."""

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        entry = super().write(shard, table, storage)
        path = f"shards/{shard}.tar"
        content = storage.read_bytes(path)[:-512]
        storage.commit(path, content)
        digest = hashlib.sha256(content).hexdigest()
        return replace(entry, num_bytes=len(content), sha256=digest)


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        (ForgetfulSink(), r"kept but not in the index: \['number-000001'\]"),
        (DoublingSink(), r"more than once in the index: \['number-000001'\]"),
        (BoastfulSink(), "its entry says 7 samples, 10 images, the index 6 and 10"),
        (TruncatingSink(), "the tar has 19968 bytes, the index accounts for 20480"),
    ],
)
def test_a_sink_that_miscounts_gets_no_manifest(tmp_path: Path, sink: TarSink, words: str) -> None:
    pipeline = replace(numbers_pipeline(), sink=sink)
    with pytest.raises(LedgerError, match=f"shard 'numbers-000000': .*{words}"):
        run(pipeline, str(tmp_path), progress=False)
    assert not (tmp_path / "manifest.json").exists()


Edit = Callable[[pa.Table], pa.Table]


def without(column: str, value: object) -> Edit:
    return lambda t: t.filter(pc.fill_null(pc.not_equal(t[column], value), True))


def twice(row: int) -> Edit:
    return lambda t: pa.concat_tables([t, t.slice(row, 1)])


def set_value(row: int, column: str, value: object) -> Edit:
    def edit(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[row][column] = value
        return pa.Table.from_pylist(rows, schema=table.schema)

    return edit


def kept_after_all(table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    row = next(r for r in rows if r["slot"] is None and r["status"] == "dropped")
    row |= {"status": "kept", "reason": None}
    return pa.Table.from_pylist(rows, schema=table.schema)


# The first rows of the second shard are of number 10, which is kept, and of its link 0.
EDITS: dict[str, tuple[Edit, str]] = {
    "a record is gone": (without("key", "number-000012"), "10 records, the ledger 9"),
    "a record stands twice": (twice(0), r"records more than once .*\['number-000010'\]"),
    "a link stands twice": (twice(1), r"links more than once .*\('number-000010', 0\)"),
    "a link of nobody": (set_value(1, "key", "stranger"), r"not in the ledger: \['stranger'\]"),
    "kept, not in the index": (kept_after_all, r"kept but not in the index: \['number-000012'\]"),
    "dropped without a reason": (
        set_value(1, "status", "dropped"),
        r"without: \['number-000010'\]",
    ),
    "a kept link of a dropped record": (set_value(0, "status", "dropped"), "record is dropped"),
    "kept with a reason": (set_value(0, "reason", "odd"), "kept with a reason"),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_ledger_that_does_not_add_up_is_found(tmp_path: Path, what: str) -> None:
    edit, words = EDITS[what]
    run(numbers_pipeline(), str(tmp_path), progress=False)
    storage, path = Storage(str(tmp_path)), tmp_path / f"ledger/{SHARD}.parquet"
    check_shard(storage, PLAN)
    table = pq.read_table(path)
    pq.write_table(edit(table).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(LedgerError, match=f"shard '{SHARD}': .*({words})"):
        check_shard(storage, PLAN)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    run(numbers_pipeline(), str(tmp_path), progress=False)
    (tmp_path / f"index/{SHARD}.parquet").unlink()
    with pytest.raises(LedgerError, match=f"index/{SHARD}.parquet"):
        check_shard(Storage(str(tmp_path)), PLAN)


class OverlappingSource(NumberSource):
    """Two shards that both hold number 9."""

    def plan(self, corpus: str) -> list[ShardPlan]:
        return [ShardPlan(f"{corpus}-{n:06d}", 10, ({"first": n * 9},)) for n in range(2)]


def test_a_key_in_two_shards_gets_no_manifest(tmp_path: Path) -> None:
    words = "key 'number-000009' occurs in shard 'numbers-000000' and in shard 'numbers-000001'"
    with pytest.raises(LedgerError, match=words):
        run(numbers_pipeline(OverlappingSource()), str(tmp_path), progress=False)
    assert not (tmp_path / "manifest.json").exists()


def test_overlapping_ranges_are_read_in_portions_and_others_not_at_all() -> None:
    keys = {"a": ["a1", "c1"], "b": ["b1", "c2"], "c": ["d1", "d2"]}
    ranges = [KeyRange(n, k[0], k[-1], len(k)) for n, k in keys.items()]
    read: list[str] = []

    def read_keys(shard: str) -> list[str]:
        read.append(shard)
        return keys[shard]

    check_unique(ranges, read_keys, portion=1)
    assert read == ["a", "b"] * 4
    keys["b"].append("a1")
    with pytest.raises(LedgerError, match="'a1' occurs in shard 'a' and in shard 'b'"):
        check_unique(ranges, read_keys, portion=3)
