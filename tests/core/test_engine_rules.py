"""A step that breaks the rules of tables is a loud error that names it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from numbers_pipeline import NumberSource, Parse, numbers_pipeline

from pipelines.core.pipeline import Filter, Reason, ShardPlan, Stage, StepError, Transform, shard_of
from pipelines.core.run import run
from schemas.sample import LINK_TYPE


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def edit_links(change: Callable[[list[dict]], list[dict]]) -> Transform:
    def broken(table: pa.Table) -> pa.Table:
        links = [change(row) for row in table["links"].to_pylist()]
        return with_column(table, "links", pa.array(links, pa.list_(LINK_TYPE)))

    return broken


def another_key(table: pa.Table) -> pa.Table:
    keys = table["key"].to_pylist()
    return with_column(table, "key", pa.array([*keys[:-1], "changed"]))


def doubled_row(table: pa.Table) -> pa.Table:
    return table.take(pa.array([0, 0, *range(2, table.num_rows)]))


def bad_reason(table: pa.Table) -> pa.Table:
    return with_column(table, "drop_reason", pa.array(["Too big!"] * table.num_rows))


def number_as_reason(table: pa.Table) -> pa.Table:
    return with_column(table, "drop_reason", pa.array([7] * table.num_rows))


def raises(table: pa.Table) -> pa.Table:
    return {}["missing"]


BROKEN: dict[str, tuple[Transform | Filter, str]] = {
    "loses a row": (lambda t: t.slice(1), "returned 11 rows for 12"),
    "doubles a row": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "returned 13 rows for 12"),
    "doubles a key": (doubled_row, "changed 'key' of row 1: 'number-000001' to 'number-000000'"),
    "changes a key": (another_key, "changed 'key' of row 11: 'number-000011' to 'changed'"),
    "changes the order": (
        lambda t: t.take(pa.array(range(t.num_rows - 1, -1, -1))),
        "changed 'key'",
    ),
    "removes a reserved column": (
        lambda t: t.drop_columns(["source"]),
        "removed the column 'source'",
    ),
    "removes the links": (lambda t: t.drop_columns(["links"]), "removed the column 'links'"),
    "changes the record number": (
        lambda t: with_column(t, "record", pa.array([0] * t.num_rows, pa.int64())),
        "changed 'record' of row 0: 1 to 0",
    ),
    "sets a bad reason": (bad_reason, "'Too big!'"),
    "sets a number as reason": (number_as_reason, "'drop_reason' as int64, expected string"),
    "doubles a column": (
        lambda t: t.append_column("drop_reason", pa.nulls(t.num_rows, pa.string())),
        "'drop_reason' twice",
    ),
    "returns no table": (lambda t: None, "returned NoneType"),  # type: ignore[arg-type]
    "raises": (raises, r"raised KeyError: 'missing' \(at test_engine_rules.py:\d+\)"),
    "removes a link": (edit_links(lambda row: row[1:]), "removed link"),
    "doubles a slot": (
        edit_links(lambda row: row + row[:1]),
        "gave a slot twice .* 'number-000001'",
    ),
    "a link without a slot": (
        edit_links(lambda row: [k | {"slot": None} for k in row]),
        "without a slot",
    ),
    "changes a url": (edit_links(lambda row: [k | {"url": "x"} for k in row]), "changed the url"),
    "revives a link": (
        edit_links(lambda row: [k | {"reason": None} for k in row]),
        "changed the drop reason of link 1 of record 'number-000010'",
    ),
    "a link's bad reason": (
        edit_links(lambda row: [k | {"reason": k["reason"] or "HTTP 404"} for k in row]),
        "'HTTP 404'",
    ),
    "a filter of another length": (
        Filter("short", lambda t: pa.array(["x"]), {}),
        "step 'short' raised ValueError: 1 reasons for 12 rows",
    ),
    "a filter's bad reason": (
        Filter("shout", lambda t: pa.array(["BAD"] * t.num_rows), {}),
        "step 'shout' gave the drop_reason 'BAD'",
    ),
    "a filter's reason that it does not declare": (
        Filter(
            "vague", lambda t: pa.array(["odd"] * t.num_rows), {"even": Reason("An even number.")}
        ),
        r"step 'vague' gave the drop_reason 'odd' \(of 'number-000000'\).* declares: \['even'\]",
    ),
    "a link's reason that its step does not declare": (
        edit_links(lambda row: [k | {"reason": k["reason"] or "gone"} for k in row]),
        r"reason of a link 'gone' \(of 'http://n.example/.*'\).* declares: \[\]",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_step_is_a_loud_error(tmp_path: Path, what: str) -> None:
    step, words = BROKEN[what]
    pipeline = numbers_pipeline(NumberSource(12, 20))
    stages = (Stage("parse", (Parse(),)), Stage("broken", (step,)))
    with pytest.raises(StepError, match=words) as caught:
        run(replace(pipeline, stages=stages), str(tmp_path), progress=False)
    assert caught.value.stage == "broken" and caught.value.shard == "numbers-000000"
    assert not (tmp_path / "manifest.json").exists()


def test_steps_see_the_name_of_the_shard_and_empty_tables(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def look(table: pa.Table) -> pa.Table:
        seen.append((shard_of(table), table.num_rows))
        return table.replace_schema_metadata({b"shard": b"nonsense"})

    none = Filter(
        "none",
        lambda t: pa.array(["unwanted"] * t.num_rows, pa.string()),
        {"unwanted": Reason("Not wanted.")},
    )
    stages = (Stage("one", (look, none, look)), *numbers_pipeline().stages)
    pipeline = replace(numbers_pipeline(NumberSource(20)), stages=stages)
    run(pipeline, str(tmp_path), progress=False)
    names = ("numbers-000000", "numbers-000001")
    assert seen == [(name, count) for name in names for count in (10 - (name == names[1]), 0)]


class ShortSource(NumberSource):
    def read(self, shard: ShardPlan) -> pa.Table:
        return super().read(shard).slice(1)


class DoublingSource(NumberSource):
    def read(self, shard: ShardPlan) -> pa.Table:
        table = super().read(shard)
        return table.set_column(0, "key", pa.array(["number-000000"] * table.num_rows))


class ShoutingSource(NumberSource):
    def read(self, shard: ShardPlan) -> pa.Table:
        table = super().read(shard)
        return table.set_column(0, "key", pa.array([f"N.{n}" for n in range(table.num_rows)]))


class FailingSource(NumberSource):
    def read(self, shard: ShardPlan) -> pa.Table:
        raise EOFError("the file ends here")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ShortSource(), "the source read 9 records, the plan counts 10"),
        (DoublingSource(), "the same key to several records: ..number-000000"),
        (ShoutingSource(), "the source gave the key 'N.0'"),
        (FailingSource(), "the source raised EOFError: the file ends here"),
    ],
)
def test_a_broken_source_is_a_loud_error(tmp_path: Path, source: NumberSource, words: str) -> None:
    with pytest.raises(StepError, match=words):
        run(numbers_pipeline(source), str(tmp_path), progress=False)
