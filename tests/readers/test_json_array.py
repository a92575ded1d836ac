"""Arrays and lines of JSON are cut into the records that a JSON parser finds, however they arrive."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.readers.json_array import ArraySource, read_array
from pipelines.readers.jsonl import Line


class Dripping(io.BytesIO):
    """A file of which at most `step` bytes come at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.step)


def lines(data: bytes, step: int = 1 << 20, max_bytes: int = 1 << 20) -> list[Line]:
    return list(read_array(Dripping(data, step), "x.json", max_bytes))


def shown(found: list[Line]) -> list[str]:
    return [line.data.decode() or str(line.reason) for line in found]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=9,
)


@given(
    values=st.lists(VALUES, max_size=6),
    step=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    is_ascii=st.booleans(),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_an_array_is_cut_into_its_values(
    values: list[Any], step: int, indent: int | None, is_ascii: bool, mark: bytes
) -> None:
    data = mark + json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode() + b"\n"
    found = lines(data, step)
    assert [json.loads(line.data) for line in found] == values
    assert [line.number for line in found] == list(range(1, len(values) + 1))
    assert all(line.reason is None for line in found)


@given(data=st.text(alphabet='[]{}",:\\\n a1', max_size=30), step=st.integers(1, 9))
def test_any_bytes_give_the_same_records_in_any_pieces_and_from_any_record(
    data: str, step: int
) -> None:
    whole = lines(data.encode())
    assert lines(data.encode(), step) == whole
    assert [line.number for line in whole] == list(range(1, len(whole) + 1))
    for line in whole:
        if line.offset:
            file = io.BytesIO(data.encode())
            rest = list(read_array(file, "x.json", 1 << 20, line.number, line.offset))
            assert rest == whole[line.number - 1 :]


@given(values=st.lists(VALUES.filter(lambda v: v is not None), min_size=1, max_size=5))
def test_values_one_after_the_other_are_records_too(values: list[Any]) -> None:
    for indent in (None, 1):
        texts = [json.dumps(value, indent=indent) for value in values]
        if texts[0].startswith("["):
            return
        found = lines("\n".join(texts).encode())
        assert [json.loads(line.data) for line in found] == values


@pytest.mark.parametrize(
    ("data", "records"),
    [
        ("", ["input_empty"]),
        (" \n", []),
        ("[]", []),
        ("[ \n ]", []),
        ("[1,]", ["1", "None"]),
        ("[1 2, {oops}, 3]", ["1 2", "{oops}", "3"]),
        ("[,1]", ["None", "1"]),
        ("[1, 2] 3", ["1", "2", "malformed_array"]),
        ("[1, 2]]", ["1", "2", "malformed_array"]),
        ("[", ["input_truncated"]),
        ('[{"a": 1}, {"b": ', ['{"a": 1}', "input_truncated"]),
        ('[{"a": "x]}, 2]', ["input_truncated"]),
        ("[[1], [[2]]]", ["[1]", "[[2]]"]),
        ('{"a": [1,\n 2]}\n{"b": "}"}', ['{"a": [1,\n 2]}', '{"b": "}"}']),
        ('{"a": "no end\n{"b": 1}\n', ['{"a": "no end', '{"b": 1}']),
        ("no json\n", ["no json"]),
    ],
)
def test_what_is_no_array_of_records_is_records_with_their_reason(
    data: str, records: list[str]
) -> None:
    assert shown(lines(data.encode())) == records


def test_a_record_that_is_too_long_costs_its_neighbours_nothing() -> None:
    data = json.dumps(["a", {"b": "x" * 5000}, "c"]).encode()
    assert shown(lines(data, 100, 1000)) == ['"a"', "record_too_long", '"c"']


def test_shards_of_arrays_and_lines_are_read_from_their_offsets(tmp_path: Path) -> None:
    values = [{"n": n, "text": "ä, [" * n} for n in range(20)]
    text = json.dumps(values, indent=1, ensure_ascii=False).encode()
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.jsonl").write_text("".join(f"{json.dumps(v)}\n" for v in values))
    (tmp_path / "d.json").write_text("".join(f"{json.dumps(v)}\n" for v in values))
    source = ArraySource([str(tmp_path / "*")], samples_per_shard=7)
    plan = source.plan("instruct")
    tables = [source.read(shard) for shard in reversed(plan)]
    rows = [row for table in reversed(tables) for row in table.to_pylist()]
    assert [json.loads(row["line"]) for row in rows] == values * 4
    assert [row["record"] for row in rows] == [*range(1, 21)] * 4
    assert rows[0]["key"] == "a-0000001"


def test_a_damaged_gzip_is_one_row(tmp_path: Path) -> None:
    text = json.dumps(list(range(2000))).encode()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text)[:-30])
    source = ArraySource([str(tmp_path / "a.json.gz")], samples_per_shard=5000)
    rows = source.read(source.plan("instruct")[0]).to_pylist()
    assert rows[-1]["drop_reason"] == "input_truncated"
    assert [row["line"] for row in rows[:-1]] == [str(n) for n in range(len(rows) - 1)]
