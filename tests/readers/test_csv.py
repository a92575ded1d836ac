"""Rows of CSV files: each is a record or has a reason, whatever is in the file and however it is cut into shards."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.readers.columns import Column
from pipelines.readers.csv import CsvSource
from pipelines.readers.files import InputError

COLUMNS = (Column("id", pa.large_string()), Column("text", pa.large_string(), ("name", "text")))


def rows_of(path: Path, samples_per_shard: int = 1000, **options: Any) -> list[dict[str, Any]]:
    source = CsvSource([str(path)], samples_per_shard, columns=COLUMNS, **options)
    shards = source.plan("test")
    tables = [source.read(shard) for shard in shards]
    assert [t.num_rows for t in tables] == [s.num_records for s in shards]
    return [row for table in tables for row in table.to_pylist()]


def written(folder: Path, data: bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_fields_are_read_as_rfc_4180_says(tmp_path: Path):
    data = b'\xef\xbb\xbfid,name,page\r\n1,"one, two",7\r\n\r\n2,"a ""b""\nc",8\r\n3,\xc3\xa4,9'
    rows = rows_of(written(tmp_path, data))
    assert [(r["id"], r["text"]) for r in rows] == [
        ("1", "one, two"),
        ("2", 'a "b"\nc'),
        ("3", "ä"),
    ]
    assert [r["extra"] for r in rows] == ['{"page": "7"}', '{"page": "8"}', '{"page": "9"}']
    assert [(r["key"], r["record"]) for r in rows] == [(f"a-000000{n}", n) for n in (1, 2, 3)]


def test_bad_rows_are_reasons_and_the_rows_behind_them_are_read(tmp_path: Path):
    lines = [
        b"id,name",
        b"1",
        b"1,2,3",
        b"4,\xff",
        b'5,"a"b',
        b'6,"never closed',
        b"7,seven",
        b"8," + b"x" * 200_000,
        b"9," + b"x" * 2_000_000,
        b"10,ten",
    ]
    rows = rows_of(written(tmp_path, b"\n".join(lines)))
    assert [r["drop_reason"] for r in rows] == [
        *("row_too_short", "row_too_long", "not_utf8", "row_malformed", "quote_not_closed", None),
        *("record_too_long", "record_too_long", None),
    ]
    assert [r["text"] for r in rows if r["drop_reason"] is None] == ["seven", "ten"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"id,nme", r"a\.csv.*no column 'name' or 'text'.*the nearest is 'nme'"),
        (b"id,text,name,ID", None),
        (b"", r"a\.csv.*empty"),
        (b"\n", r"a\.csv.*no header"),
        (b"\xff\xfe", r"a\.csv.*no header"),
        (b"name", r"a\.csv.*no column 'id'"),
    ],
)
def test_other_columns_are_an_error_that_names_the_nearest(
    tmp_path: Path, header: bytes, message: str | None
):
    path = written(tmp_path, header + b"\n1,2,3,4\n")
    if message is None:
        assert [r["text"] for r in rows_of(path)] == ["3"], "the first of the names that is there"
        return
    with pytest.raises(InputError, match=message):
        rows_of(path)


def test_a_truncated_and_a_damaged_gzip_file_say_so(tmp_path: Path):
    data = b"id,name\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(20_000))
    packed = gzip.compress(data)
    whole = rows_of(written(tmp_path, packed, "a.csv.gz"), 7000)
    assert len(whole) == 20_000 and whole[-1]["key"] == "a-0020000"
    cut = rows_of(written(tmp_path, packed[: len(packed) // 2], "b.csv.gz"), 1000)
    assert cut[-1]["drop_reason"] == "input_truncated" and len(cut) > 1
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    rows = rows_of(written(tmp_path, bytes(damaged), "c.csv.gz"), 1000)
    assert rows[-1]["drop_reason"] in ("input_corrupt", "input_truncated", None)


def test_a_file_that_changed_is_an_error(tmp_path: Path):
    path = written(tmp_path, b"id,name\n1,2\n3,4\n")
    source = CsvSource([str(path)], columns=COLUMNS)
    (shard,) = source.plan("test")
    path.write_bytes(b"id,name\n1,2\n")
    with pytest.raises(InputError, match="has changed"):
        source.read(shard)


TEXT = st.text(st.sampled_from('ab ,"\n\r\tä\U0001f600'), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=12), st.integers(1, 5))
def test_what_python_writes_is_read_whole_at_any_size_of_shard(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], size: int
):
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "name"), *pairs])
    path = written(tmp_path_factory.mktemp("csv"), out.getvalue().encode())
    rows = rows_of(path, size)
    assert [(r["id"], r["text"]) for r in rows] == pairs
    packed = written(path.parent, gzip.compress(path.read_bytes()), "a.csv.gz")
    assert [(r["id"], r["text"]) for r in rows_of(packed, size)] == pairs


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 4))
def test_any_bytes_are_rows_with_reasons_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int
):
    path = written(tmp_path_factory.mktemp("csv"), b"id,name\n" + data)
    whole, cut = rows_of(path), rows_of(path, size)
    assert whole == cut
    assert [r["record"] for r in whole] == list(range(1, len(whole) + 1))
