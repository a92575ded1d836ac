"""Every table of the contract: documented column by column, checked on writing and on reading."""

import importlib
import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.features import FeatureInfo, feature_info, features_schema, features_spec
from schemas.sample import LINK_TYPE, SAMPLES, SEGMENT_TYPE, Link, link_from_row
from schemas.table_spec import VERSION_KEY, TableSpec, check_table
from schemas.tables import INDEX, LEDGER
from schemas.validation import SchemaError

INFO = FeatureInfo("eva", "ab" * 32, "as it is", "float32", 4, 3, 4, "int8")
TYPES = {
    "none": (pa.float16(), None),
    "float16": (pa.float16(), pa.float16()),
    "float32": (pa.float32(), pa.float32()),
    "int8": (pa.float16(), pa.int8()),
}
TABLES = {t.name: t for t in (SAMPLES, LEDGER, INDEX, features_spec(INFO))}

ROWS: dict[str, dict[str, Any]] = {
    "samples": {"key": "k-1", "corpus": "c", "segments": [], "meta": "{}"},
    "ledger": {
        "key": "k-1",
        "slot": 2,
        "source": "docs.jsonl",
        "record": 7,
        "url": "http://a.example/",
        "stage": "parse",
        "status": "dropped",
        "reason": "too_small",
        "detail": None,
    },
    "index": {
        "key": "k-1",
        "shard": "mmc4-000000",
        "members": [{"name": "json", "offset": 512, "size": 3}],
        "num_segments": 1,
        "num_images": 0,
        "text_length": 0,
        "image_widths": [],
        "image_heights": [],
        "image_sha256": [],
        "text_sha256": "0" * 64,
        "scores": [("similarity", 0.3)],
    },
    "features": {
        "key": "k-1",
        "segment": 0,
        "pooled": [0.5] * 4,
        "tokens": [25] * 12,
        "scales": [0.25] * 3,
    },
}


def documented(module: str, after: str) -> list[str]:
    """First cells of the first markdown table that follows a phrase in a module's docstring."""
    text = importlib.import_module(module).__doc__ or ""
    rows = re.search(rf"{after}.*?\n((?:\|[^\n]*\n?)+)", text, re.DOTALL)
    assert rows is not None, f"{module}: no table after '{after}'"
    cells = [line.split("|")[1].strip() for line in rows.group(1).splitlines()]
    return cells[2:]


@pytest.mark.parametrize(
    ("module", "after", "names"),
    [
        ("schemas.tables", "Ledger, ", LEDGER.schema.names),
        ("schemas.tables", "Index, ", INDEX.schema.names),
        ("schemas.sample", "Segment \\(struct", SEGMENT_TYPE.names),
        ("schemas.sample", "Sample \\(table", SAMPLES.schema.names),
        ("schemas.sample", "Link \\(struct", LINK_TYPE.names),
        ("schemas.features", "Version 2", features_schema(INFO, "0" * 64).names),
    ],
)
def test_the_docstring_lists_exactly_the_columns(module: str, after: str, names: list[str]) -> None:
    assert documented(module, after) == list(names)


@pytest.mark.parametrize("name", TABLES)
def test_a_good_table_passes_and_carries_its_version(name: str) -> None:
    spec = TABLES[name]
    table = spec.table([ROWS[name]] * 2)
    assert table.schema.metadata[VERSION_KEY] == TABLES[name].label.encode()
    shuffled = table.select(list(reversed(table.column_names)))
    assert check_table(shuffled, spec).column_names == [c.name for c in spec.columns]
    assert check_table(spec.table([]), spec).num_rows == 0


@pytest.mark.parametrize(
    ("spec", "column"),
    [pytest.param(s, c, id=f"{n}.{c.name}") for n, s in TABLES.items() for c in s.columns],
)
def test_errors_name_the_column_and_the_row(spec: TableSpec, column: Any) -> None:
    table = spec.table([ROWS[spec.name]] * 3)
    where = f"{spec.label}: column '{column.name}'"
    with pytest.raises(SchemaError, match=f"{where} is missing"):
        check_table(table.drop_columns([column.name]), spec)
    place = table.schema.get_field_index(column.name)
    wrong = table.set_column(place, column.name, pa.array([True] * 3))
    with pytest.raises(SchemaError, match=f"{where} has type bool, expected"):
        check_table(wrong, spec)
    if not column.nullable:
        with pytest.raises(SchemaError, match=f"{where}, row 1: null is not allowed"):
            spec.table([ROWS[spec.name], ROWS[spec.name] | {column.name: None}])
    with pytest.raises(SchemaError, match=f"{where}, row 2: .* is not "):
        spec.table([ROWS[spec.name]] * 2 + [ROWS[spec.name] | {column.name: object()}])


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("samples", "key", "A.b"),
        ("samples", "corpus", "laion 400m"),
        ("ledger", "key", "A.b"),
        ("ledger", "slot", -1),
        ("ledger", "record", 0),
        ("ledger", "status", "lost"),
        ("ledger", "reason", "HTTP 404"),
        ("index", "key", ""),
        ("index", "shard", "mmc4-1"),
        ("index", "num_segments", 0),
        ("index", "num_images", -1),
        ("index", "text_length", -1),
        ("features", "key", "k.1"),
        ("features", "segment", -1),
    ],
)
def test_a_value_against_the_rule_is_shown(name: str, column: str, value: object) -> None:
    rows = [ROWS[name], ROWS[name] | {column: value}]
    with pytest.raises(SchemaError) as caught:
        TABLES[name].table(rows)
    label = TABLES[name].label
    assert f"{label}: column '{column}', row 1: {value!r} is not" in str(caught.value)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(SchemaError, match=r"row 0: 'k{78}… is not"):
        LEDGER.table([ROWS["ledger"] | {"key": "k" * 1000}])


@pytest.mark.parametrize("name", TABLES)
def test_other_columns_and_versions_are_refused(name: str) -> None:
    spec, table = TABLES[name], TABLES[name].table([ROWS[name]])
    with pytest.raises(SchemaError, match="unexpected column 'colour'"):
        check_table(table.append_column("colour", pa.array(["red"])), spec)
    newer = table.replace_schema_metadata({VERSION_KEY: f"{name}/9"})
    with pytest.raises(
        SchemaError, match=f"file is version '{name}/9', this release reads '{spec.label}'"
    ):
        check_table(newer, spec)


def test_features_know_what_made_them() -> None:
    for patches, (pooled, tokens) in TYPES.items():
        info = replace(INFO, patches=patches)
        assert feature_info(info.as_dict()) == info
        schema = features_schema(info, "0" * 64)
        assert schema.field("pooled").type == pa.list_(pooled, 4)
        if tokens is not None:
            assert schema.field("tokens").type == pa.list_(tokens, 12)
        assert ("tokens" in schema.names) == (tokens is not None)
        assert ("scales" in schema.names) == (patches == "int8")
    for change, words in (
        ({"patches": "float64"}, "patches 'float64'"),
        ({"width": 0}, "3 tokens of width 0"),
        ({"pooled_width": 0}, "an embedding of width 0"),
    ):
        with pytest.raises(SchemaError, match=words):
            feature_info(INFO.as_dict() | change)
    with pytest.raises(SchemaError, match="'width' of the feature description is missing"):
        feature_info({k: v for k, v in INFO.as_dict().items() if k != "width"})


words = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
links = st.builds(Link, st.integers(0, 2**31 - 1), words.map(lambda w: w or ""), words, words)


@settings(max_examples=50, deadline=None)
@given(links)
def test_a_link_survives_arrow(link: Link) -> None:
    (row,) = pa.array([link.as_row()], LINK_TYPE).to_pylist()
    assert link_from_row(row) == link
    dropped = link.dropped("late", "too late")
    assert not dropped.is_alive
    assert dropped == (link if link.reason else Link(link.slot, link.url, "late", "too late"))
