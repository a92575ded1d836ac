import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.storage import Storage
from pipelines.publish.shards import ShardSink
from schemas.sample import SAMPLES, Sample, Segment
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
