"""Filters that are made on the worker, that give details, and barriers whose plan is kept shard by shard."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from numbers_pipeline import NumberSource, contents, numbers_pipeline

from pipelines.core.pipeline import (
    Barrier,
    Construct,
    Filter,
    PerShard,
    Pipeline,
    Reason,
    Stage,
    StepError,
    shard_of,
)
from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from schemas.shard import LEDGERS
from schemas.tables import LEDGER

REASONS = {"sevens": Reason("The number is a multiple of 7.")}


class NoSevens:
    """The test of a filter, with something to open and to close."""

    def __init__(self, notes: str) -> None:
        self.notes = Path(notes)
        (self.notes / f"made.{len(list(self.notes.iterdir()))}").touch()

    def __call__(self, table: pa.Table) -> pa.Array:
        numbers = table["number"].to_pylist()
        return pa.StructArray.from_arrays(
            [
                pa.array([None if n % 7 else "sevens" for n in numbers], pa.string()),
                pa.array([None if n % 7 else f"{n} = 7 x {n // 7}" for n in numbers], pa.string()),
            ],
            ["reason", "detail"],
        )

    def close(self) -> None:
        (self.notes / "closed").touch()


def ledger_rows(out: Path) -> list[dict]:
    storage = Storage(str(out))
    names = storage.list(LEDGERS)
    return [r for n in names for r in read_parquet(storage, f"{LEDGERS}/{n}", LEDGER).to_pylist()]


def with_last(*stages: Stage | Barrier) -> Pipeline:
    pipeline = numbers_pipeline(NumberSource(50), None)
    return replace(pipeline, stages=(*pipeline.stages, *stages))


def test_a_filter_made_on_the_worker_gives_reasons_and_details(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    sevens = Filter("no_sevens", Construct(NoSevens, (str(notes),)), REASONS)
    manifest = run(with_last(Stage("filter", (sevens,))), str(tmp_path / "out"), progress=False)
    assert sorted(p.name for p in notes.iterdir()) == ["closed", "made.0"]
    rows = [r for r in ledger_rows(tmp_path / "out") if r["reason"] == "sevens"]
    assert rows and all(r["detail"].startswith(f"{r['record'] - 1} = 7 x") for r in rows)
    assert {r["stage"] for r in rows} == {"filter/no_sevens"}
    seen = manifest.stages["filter/no_sevens"]
    assert seen["dropped"] == {"sevens": len(rows)} and seen["seen"] > len(rows)


def test_a_filter_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    broken = Filter("no_sevens", Construct(NoSevens, ()), REASONS)
    with pytest.raises(StepError, match=r"constructing 'no_sevens'.*notes"):
        run(with_last(Stage("filter", (broken,))), str(tmp_path / "out"), progress=False)


def per_shard_barrier(columns: tuple[str, ...] | None, seen: list[list[str]]) -> Barrier:
    """Drops the last record of each shard but the first one, of which the plan says nothing."""

    def plan(tables: Iterable[pa.Table]) -> PerShard:
        def values() -> Iterator[tuple[str, str]]:
            for number, table in enumerate(tables):
                seen.append(table.column_names)
                if number:
                    yield shard_of(table), table["key"][-1].as_py()

        return PerShard(values())

    def apply(table: pa.Table, last: str | None) -> pa.Table:
        reasons = ["last" if key == last else None for key in table["key"].to_pylist()]
        position = table.schema.get_field_index("drop_reason")
        return table.set_column(position, "drop_reason", pa.array(reasons, pa.string()))

    reasons = {"last": Reason("The last of its shard.")}
    return Barrier("tails", plan, apply, reasons=reasons, columns=columns)


def test_a_plan_per_shard_reads_the_columns_that_it_asks_for(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    for name, columns in (("all", None), ("some", ("key",))):
        manifest = run(
            with_last(per_shard_barrier(columns, seen)), str(tmp_path / name), progress=False
        )
        assert manifest.records.dropped["last"] == len(manifest.shards) - 1
    assert contents(tmp_path / "all") == contents(tmp_path / "some")
    assert "number" in seen[0] and seen[-1] == ["key"]


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"have no columns.*colour"):
        run(with_last(per_shard_barrier(("colour",), [])), str(tmp_path / "out"), progress=False)
