"""Lines of `.jsonl` and whole `.json` files as records of one source."""

import gzip
from pathlib import Path

import pytest

from pipelines.readers.files import InputError
from pipelines.readers.json_records import RecordSource


def test_a_json_file_is_one_record_whatever_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{\n "x": 1\n}\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"x": 2}\n\n{"x": 3}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"x": 4}\n'))
    (tmp_path / "d.info.json").write_bytes(b"")
    (tmp_path / "e.json").write_bytes(b"\xff")
    source = RecordSource([f"{tmp_path}/*"], samples_per_shard=2, max_line_bytes=100)
    plan = source.plan("x")
    assert [shard.num_records for shard in plan] == [2, 2, 2]
    rows = [row for shard in plan for row in source.read(shard).to_pylist()]
    assert [row["line"] for row in rows] == [
        '{\n "x": 1\n}\n',
        '{"x": 2}',
        '{"x": 3}',
        '{"x": 4}',
        None,
        None,
    ]
    assert [row["key"] for row in rows][::4] == ["a-0000001", "d_info-0000001"]
    assert [row["drop_reason"] for row in rows[4:]] == ["input_empty", "not_utf8"]


def test_a_json_file_above_the_limit_is_a_record_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b" " * 101)
    source = RecordSource([f"{tmp_path}/a.json"], max_line_bytes=100)
    (row,) = source.read(source.plan("x")[0]).to_pylist()
    assert row["drop_reason"] == "record_too_long"


def test_keys_leave_room_for_the_number_of_a_part(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{'n' * 200}.jsonl").write_text("{}\n")
    source = RecordSource([f"{tmp_path}/*/*"])
    keys = source.read(source.plan("x")[0])["key"].to_pylist()
    assert len(set(keys)) == 2 and all(len(f"{key}-000") <= 72 for key in keys)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    with pytest.raises(InputError, match=r"must end in .*\.json"):
        RecordSource([f"{tmp_path}/a.parquet"]).plan("x")
