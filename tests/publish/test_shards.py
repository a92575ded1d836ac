import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.storage import Storage
from pipelines.publish.sample_table import write_table
from pipelines.publish.shards import ShardSink
from schemas.sample import CANONICAL_META, SAMPLES, Sample, Segment, canonical_json
from schemas.shard import decode_members, read_tar
from schemas.table_spec import check_table
from schemas.tables import INDEX
from schemas.validation import SchemaError


def sample(number: int) -> Sample:
    image = Segment.of_image(bytes([number]) * (number + 1), "jpg", 10 + number, 20)
    segments = (Segment.of_text(f"text {number}"), image, image)
    return Sample(f"k-{number}", "test", segments, {"scores": {"s": 0.5}})


def table(samples: list[Sample]) -> pa.Table:
    rows = SAMPLES.table([s.as_row() for s in samples])
    return rows.append_column("more", pa.nulls(len(rows), pa.string()))


def test_tar_index_and_entry_agree(tmp_path: Path):
    samples = [sample(i) for i in range(100)]
    entry = ShardSink().write("test-000003", table(samples), Storage(str(tmp_path)))
    data = (tmp_path / "shards/test-000003.tar").read_bytes()
    assert entry.num_samples == 100 and entry.num_images == 200
    assert (entry.num_bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    with (tmp_path / "shards/test-000003.tar").open("rb") as file:
        assert list(read_tar(file)) == samples
    index = check_table(pq.read_table(tmp_path / "index/test-000003.parquet"), INDEX)
    for row, expected in zip(index.to_pylist(), samples, strict=True):
        members = {m["name"]: data[m["offset"] : m["offset"] + m["size"]] for m in row["members"]}
        assert decode_members(row["key"], members) == expected
        assert json.loads(members["json"])["schema"] == "sample/1"


def test_writing_twice_gives_the_same_bytes(tmp_path: Path):
    for name in "ab":
        ShardSink().write("t-000000", table([sample(1)]), Storage(str(tmp_path / name)))
    for path in ("shards/t-000000.tar", "index/t-000000.parquet"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_shard_without_samples_is_a_complete_tar(tmp_path: Path):
    entry = ShardSink().write("t-000000", table([]), Storage(str(tmp_path)))
    assert (entry.num_samples, entry.num_bytes) == (0, 1024)


def test_a_bad_sample_leaves_no_tar(tmp_path: Path):
    rows = table([sample(1), sample(2)])
    bad = rows.set_column(0, "key", pa.array(["k-1", "With.Dot"]))
    with pytest.raises(SchemaError, match=r"With\.Dot"):
        ShardSink().write("t-000000", bad, Storage(str(tmp_path)))
    assert not list((tmp_path / "shards").glob("*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "video"}, "kind 'video'"),
        ({"kind": None}, "kind None"),
        ({"text": "x"}, "an image segment carries a text"),
        ({"image": None}, "missing or empty"),
        ({"image": b""}, "missing or empty"),
        ({"format": "gif"}, "format 'gif'"),
        ({"format": None}, "format None"),
        ({"width": None}, "width None"),
        ({"height": 0}, "height 0"),
        ({"time_s": float("nan")}, "time_s nan"),
        ({"time_s": -1.0}, "time_s -1.0"),
        ({"role": "robot"}, "role 'robot'"),
        ({"kind": "text", "text": "x"}, "carries image bytes"),
    ],
)
def test_a_table_with_a_bad_segment_is_refused_with_its_name(change: dict, words: str):
    rows = [sample(1).as_row(), sample(2).as_row()]
    rows[1]["segments"][2] |= change
    with pytest.raises(SchemaError, match=f"'k-2', segment 2: .*{words}"):
        write_table(io.BytesIO(), SAMPLES.table(rows), "t-000000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"corpus": "C"}, "corpus 'C'"),
        ({"segments": []}, "no segments"),
        ({"meta": '{"a":NaN}'}, "meta is not JSON"),
    ],
)
def test_a_table_with_a_bad_sample_is_refused_with_its_key(change: dict, words: str):
    rows = [sample(1).as_row(), sample(2).as_row() | change]
    unchecked = pa.Table.from_pylist(rows, schema=SAMPLES.schema)
    with pytest.raises(SchemaError, match=f"'k-2'.*{words}"):
        write_table(io.BytesIO(), unchecked, "t-000000")


def test_meta_that_is_not_canonical_is_written_in_canonical_form():
    row = sample(1).as_row()
    spaced = row | {"meta": json.dumps(json.loads(row["meta"]), indent=2)}
    found = [io.BytesIO(), io.BytesIO()]
    for buffer, one in zip(found, (row, spaced), strict=True):
        write_table(buffer, SAMPLES.table([one]), "t-000000")
    assert found[0].getvalue() == found[1].getvalue()


def marked(row: dict) -> pa.Table:
    """The sample as a table whose meta is said to be canonical."""
    found = pa.Table.from_pylist([row], schema=SAMPLES.schema)
    return found.set_column(3, CANONICAL_META, found["meta"])


@pytest.mark.parametrize("about", [{}, {"a": 1}, {"scores": {"s": 1}}, {"of": {"scores": [1]}}])
def test_meta_that_is_canonical_by_construction_gives_the_same_bytes_and_scores(about: dict):
    row = sample(1).as_row() | {"meta": canonical_json(about)}
    found = []
    for one in (SAMPLES.table([row]), marked(row)):
        buffer = io.BytesIO()
        found.append((write_table(buffer, one, "t-000000"), buffer.getvalue()))
    assert found[0] == found[1]


@pytest.mark.parametrize("meta", [None, "[1]", "3", ""])
def test_meta_that_is_no_object_is_refused_whatever_is_said_of_it(meta: str | None):
    with pytest.raises((SchemaError, TypeError, ValueError)):
        write_table(io.BytesIO(), marked(sample(1).as_row() | {"meta": meta}), "t-000000")
