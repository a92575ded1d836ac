"""A step may divide records; nothing is lost by it, and the ledger counts the parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numbers_pipeline import NumberSource, contents, numbers_pipeline

from pipelines.core.division import Divide
from pipelines.core.pipeline import Filter, Pipeline, Reason, Stage, StepError, Transform
from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from schemas.shard import INDEXES, LEDGERS
from schemas.tables import INDEX, KEPT, LEDGER

Row = dict[str, Any]


@dataclass(frozen=True)
class IntoParts:
    """A number n becomes 1 + n % 3 parts, which share its links; 7 is dropped, 0 stays whole."""

    reasons: ClassVar = {"seven": Reason("It is 7.")}

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [part for row in table.to_pylist() for part in self._parts(row)]
        return pa.Table.from_pylist(rows, schema=table.schema)

    def _parts(self, row: Row) -> list[Row]:
        if row["number"] == 7:
            return [row | {"drop_reason": "seven"}]
        if row["number"] == 0:
            return [row]
        count = 1 + row["number"] % 3
        return [
            row | {"key": f"{row['key']}-{n}", "links": row["links"][n::count]}
            for n in range(count)
        ]


def second_parts(table: pa.Table) -> pa.Array:
    keys = table["key"].to_pylist()
    return pa.array(["second" if key.endswith("-1") else None for key in keys], pa.string())


def divided(*steps: Transform | Filter) -> Pipeline:
    pipeline = numbers_pipeline(NumberSource(30))
    return replace(pipeline, stages=(*pipeline.stages, Stage("divide", steps)))


def test_the_ledger_counts_parts_and_the_input_its_records(tmp_path: Path) -> None:
    drop = Filter("drop", second_parts, {"second": Reason("A second part.")})
    pipeline = divided(Divide(IntoParts()), drop)
    manifest = run(pipeline, str(tmp_path / "one"), progress=False)
    run(pipeline, str(tmp_path / "two"), progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    storage = Storage(str(tmp_path / "one"))
    names = [shard.name for shard in manifest.shards]
    ledger = pa.concat_tables(
        read_parquet(storage, f"{LEDGERS}/{name}.parquet", LEDGER) for name in names
    )
    index = pa.concat_tables(
        read_parquet(storage, f"{INDEXES}/{name}.parquet", INDEX) for name in names
    )
    records = ledger.filter(pc.is_null(ledger["slot"])).to_pylist()
    assert {row["record"] for row in records} == set(range(1, 31))
    assert manifest.records.total == len(records) > 30 and manifest.records.is_whole
    kept = [row["key"] for row in records if row["status"] == KEPT]
    assert sorted(kept) == sorted(index["key"].to_pylist()) and len(kept) == manifest.num_samples
    by_number = {n: sorted(r["key"][14:] for r in records if r["record"] == n + 1) for n in (1, 7)}
    assert by_number == {1: ["0", "1"], 7: [""]}
    assert manifest.records.dropped["seven"] == 1 and manifest.records.dropped["second"] > 5
    assert manifest.stages["divide"]["seen"] == sum(
        row["stage"].startswith(("divide", "publish")) for row in records
    )
    plain = run(numbers_pipeline(NumberSource(30)), str(tmp_path / "plain"), progress=False)
    assert manifest.links.total == plain.links.total, "each link once"


def each_row(change: Callable[[Row], list[Row]]) -> Transform:
    def broken(table: pa.Table) -> pa.Table:
        rows = [part for row in table.to_pylist() for part in change(row)]
        return pa.Table.from_pylist(rows, schema=table.schema)

    return broken


def halves(row: Row) -> list[Row]:
    return [row | {"key": f"{row['key']}-a"}, row | {"key": f"{row['key']}-b", "links": []}]


BROKEN: dict[str, tuple[Transform, str]] = {
    "loses a record": (lambda t: t.slice(1), "lost record 'number-000001'"),
    "keeps the key of two parts": (each_row(lambda r: [r, *halves(r)]), "the key 'number-000001'"),
    "gives a strange key": (each_row(lambda r: [r | {"key": "x"}]), "the key 'x'"),
    "gives a key that is none": (
        each_row(lambda r: [r | {"key": r["key"] + "-A"}]),
        "'number-000001-A'",
    ),
    "doubles a key": (
        each_row(lambda r: [r | {"key": r["key"] + "-0", "links": k} for k in (r["links"], [])]),
        "the same key",
    ),
    "makes up a record": (each_row(lambda r: [r | {"record": r["record"] + 500}]), "no record"),
    "moves records": (lambda t: t.take(pa.array(range(t.num_rows - 1, -1, -1))), "moved records"),
    "loses links": (each_row(lambda r: [r | {"links": []}]), "removed link 0 of record"),
    "doubles links": (
        each_row(lambda r: [p | {"links": r["links"]} for p in halves(r)]),
        "two parts",
    ),
    "changes a link": (
        each_row(lambda r: [r | {"links": [k | {"url": "x"} for k in r["links"]]}]),
        "changed the url",
    ),
    "removes a column": (lambda t: t.drop_columns(["record"]), "removed the column 'record'"),
    "removes the links": (lambda t: t.drop_columns(["links"]), "removed the column 'links'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_division_is_a_loud_error(tmp_path: Path, what: str) -> None:
    step, words = BROKEN[what]
    with pytest.raises(StepError, match=words):
        run(divided(Divide(step)), str(tmp_path), progress=False)
    assert not (tmp_path / "manifest.json").exists()


def test_parts_are_not_divided_again(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="divides records that were divided before"):
        run(divided(Divide(IntoParts()), Divide(IntoParts())), str(tmp_path), progress=False)
