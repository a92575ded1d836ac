"""Rows with segments as columns become the table that the same samples give, and meta says who made it."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.pipeline import RECORD_FIELDS, SHARD_KEY
from pipelines.transforms.samples import parsed_table, sample_table
from schemas.sample import (
    CANONICAL_META,
    SEGMENT_TYPE,
    CanonicalJson,
    Segment,
    Segments,
    canonical_json,
)

RECORDS = pa.schema(RECORD_FIELDS, metadata={SHARD_KEY: b"test-000000"})

times = st.none() | st.integers(0, 9).map(float)
texts = st.builds(lambda text, time_s: Segment.of_text(text, time_s=time_s), st.text("aé"), times)
images = st.builds(
    lambda data, side, time_s: Segment.of_image(data, "jpg", side, 2 * side, time_s=time_s),
    st.binary(min_size=1, max_size=4),
    st.integers(1, 9),
    times,
)


def columns_of(segments: list[Segment]) -> Segments:
    images = [s for s in segments if s.kind == "image"]
    return Segments(
        [s.kind == "image" for s in segments],
        [s.time_s for s in segments],
        [s.role for s in segments],
        [s.text or "" for s in segments if s.kind == "text"],
        [s.image or b"" for s in images],
        [s.format or "" for s in images],
        [s.width or 0 for s in images],
        [s.height or 0 for s in images],
    )


def row_of(number: int) -> dict:
    return {"key": f"k-{number}", "source": "s", "record": number + 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(texts | images, max_size=5), max_size=4))
def test_segments_as_columns_are_the_segments(samples: list[list[Segment]]) -> None:
    rows = [
        row_of(n) | ({"segments": columns_of(found)} if found else {"drop_reason": "none"})
        for n, found in enumerate(samples)
    ]
    found = sample_table(rows, RECORDS.empty_table())["segments"]
    found.validate(full=True)
    wanted = [[segment.as_row() for segment in segments] for segments in samples]
    assert found.combine_chunks().equals(pa.array(wanted, pa.list_(SEGMENT_TYPE)))


@pytest.mark.parametrize("make", [canonical_json, json.dumps])
def test_only_what_canonical_json_made_is_called_canonical(make) -> None:
    made = make({"b": 1, "a": "x"})
    is_canonical = type(made) is CanonicalJson
    rows = [row_of(0) | {"meta": made}, row_of(1) | {"drop_reason": "none"}]
    parsed = parsed_table(
        pa.Table.from_pylist([row_of(0)], schema=RECORDS),
        pa.schema([*RECORD_FIELDS, pa.field("meta", pa.string())]),
        lambda row: {"meta": made},
    )
    for table in (sample_table(rows, RECORDS.empty_table()), parsed):
        assert (table.schema.field("meta").metadata == CANONICAL_META.metadata) is is_canonical
        assert table["meta"][0].as_py() == made
        replaced = table.set_column(table.schema.get_field_index("meta"), "meta", table["meta"])
        assert replaced.schema.field("meta").metadata is None
