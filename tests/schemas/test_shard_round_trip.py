"""Sample -> tar -> Sample is the identity, read as a stream, by the index, and by webdataset."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from strategies import samples, shards_of_samples

from pipelines.publish.sample_table import write_table
from schemas.sample import SAMPLES, Sample, Segment, check_sample, sample_from_row
from schemas.shard import (
    decode_members,
    encode_members,
    read_members,
    read_tar,
    shard_name,
    tar_bytes,
)
from schemas.tables import INDEX
from schemas.validation import SchemaError

IMAGE = Segment.of_image(b"\x89PNG", "png", 3, 2)
TEXT = Segment.of_text("a caption")
SHARD = "numbers-000001"


@settings(max_examples=60, deadline=None)
@given(shards_of_samples)
@example([])
@example([Sample("pair", "c", (IMAGE, TEXT))])
@example([Sample("reversed", "c", (TEXT, IMAGE))])
@example([Sample("timed-pair", "c", (Segment.of_text("a", time_s=0.1), IMAGE))])
@example([Sample("images", "c", (IMAGE,) * 30)])
@example([Sample("empty", "c", (Segment.of_text(""),))])
@example([Sample("lines", "c", (IMAGE, Segment.of_text("a\r\n\0\ufeffb\U0001f9ea\u2028")))])
def test_a_tar_gives_back_its_samples(samples: list[Sample]) -> None:
    data, rows = tar_bytes(samples, SHARD)
    assert list(read_tar(io.BytesIO(data))) == samples
    index = INDEX.table(rows).to_pylist()
    found = [decode_members(r["key"], read_members(data, r["members"])) for r in index]
    assert found == samples
    assert tar_bytes(samples, SHARD)[0] == data


@settings(max_examples=60, deadline=None)
@given(shards_of_samples)
def test_a_table_gives_the_bytes_of_its_samples(samples: list[Sample]) -> None:
    data, rows = tar_bytes(samples, SHARD)
    written = SAMPLES.table([s.as_row() for s in samples])
    for part in (written, pa.concat_tables([written, written]).slice(len(samples))):
        buffer = io.BytesIO()
        assert INDEX.table(write_table(buffer, part, SHARD)).equals(INDEX.table(rows))
        assert buffer.getvalue() == data


@settings(max_examples=50, deadline=None)
@given(samples)
def test_an_arrow_row_gives_back_its_sample(sample: Sample) -> None:
    (row,) = SAMPLES.table([sample.as_row()]).to_pylist()
    assert sample_from_row(row) == sample


@settings(max_examples=50, deadline=None)
@given(samples)
def test_the_index_says_what_the_sample_holds(sample: Sample) -> None:
    _, rows = tar_bytes([sample], SHARD)
    (row,) = INDEX.table(rows).to_pylist()
    assert row["num_segments"] == len(sample.segments)
    assert row["num_images"] == len(sample.images)
    assert row["image_widths"] == [s.width for s in sample.images]
    assert row["text_length"] == sum(len(s.text or "") for s in sample.segments)
    assert dict(row["scores"]) == {
        name: float(value) for name, value in sample.meta.get("scores", {}).items()
    }


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shards_of_samples)
def test_webdataset_reads_the_same_keys_and_members(tmp_path: Path, samples: list[Sample]) -> None:
    import webdataset

    if not samples:
        return
    path = tmp_path / "shard.tar"
    path.write_bytes(tar_bytes(samples, SHARD)[0])
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    found = list(dataset)
    assert [s["__key__"] for s in found] == [s.key for s in samples]
    for read, sample in zip(found, samples, strict=True):
        members = {k: v for k, v in read.items() if not k.startswith("__")}
        assert members == dict(encode_members(sample))


def test_pairs_are_laid_out_as_other_tools_expect() -> None:
    for segments in ((IMAGE, TEXT), (TEXT, IMAGE)):
        members = encode_members(Sample("k", "c", segments))
        assert [name for name, _ in members] == ["png", "txt", "json"]
        assert dict(members)["txt"] == b"a caption"
    names = [name for name, _ in encode_members(Sample("k", "c", (TEXT, IMAGE, IMAGE)))]
    assert names == ["json", "0.png", "1.png"]


@pytest.mark.parametrize("key", ["a.b", "A", "", "a/b", "ä", "a b", "a\n", "k" * 81, "..", None, 3])
def test_keys_that_webdataset_would_cut_are_refused(key: str) -> None:
    with pytest.raises(SchemaError, match=r"sample key .* is not"):
        tar_bytes([Sample(key, "c", (TEXT,))], SHARD)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (Sample("k", "C", (TEXT,)), "corpus 'C' is not"),
        (Sample("k", "c", ()), "no segments"),
        (Sample("k", "c", (TEXT, Segment("video"))), "segment 1: kind 'video'"),  # type: ignore[arg-type]
        (Sample("k", "c", (Segment("text"),)), "segment 0: text is NoneType"),
        (Sample("k", "c", (Segment.of_text("\ud800"),)), "not valid unicode"),
        (Sample("k", "c", (Segment.of_text("a", time_s=-1.0),)), "time_s -1.0"),
        (Sample("k", "c", (Segment.of_text("a", time_s=float("nan")),)), "time_s nan"),
        (Sample("k", "c", (Segment.of_text("a", role="robot"),)), "role 'robot'"),
        (Sample("k", "c", (Segment("text", text="a", width=3),)), "carries a width"),
        (Sample("k", "c", (Segment("text", text="a", image=b"x"),)), "carries image bytes"),
        (Sample("k", "c", (Segment.of_image(b"", "jpg", 1, 1),)), "missing or empty"),
        (Sample("k", "c", (Segment.of_image(b"x", "gif", 1, 1),)), "format 'gif'"),
        (Sample("k", "c", (Segment.of_image(b"x", "jpg", 0, 1),)), "width 0"),
        (Sample("k", "c", (Segment.of_image(b"x", "jpg", 1, 2**31),)), "height 2147483648"),
        (Sample("k", "c", (Segment.of_image(b"x", "jpg", True, 1),)), "width True"),
        (Sample("k", "c", (TEXT,), {"a": float("nan")}), "meta is not JSON"),
        (Sample("k", "c", (TEXT,), {"a": b"bytes"}), "meta is not JSON"),
        (Sample("k", "c", (TEXT,), {"a": (1, 2)}), "does not survive JSON"),
        (Sample("k", "c", (TEXT,), {1: "a"}), "does not survive JSON"),  # type: ignore[dict-item]
    ],
)
def test_samples_that_break_the_contract_are_named(sample: Sample, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        check_sample(sample)


def test_shards_of_another_kind_are_named() -> None:
    data, _ = tar_bytes([Sample("k", "c", (TEXT, IMAGE, IMAGE))], SHARD)
    with pytest.raises(SchemaError, match=r"x\.tar: not a whole tar file"):
        list(read_tar(io.BytesIO(data[:700]), "x.tar"))
    newer = data.replace(b"sample/1", b"sample/7")
    with pytest.raises(SchemaError, match="sample 'k': version 'sample/7', this release reads"):
        list(read_tar(io.BytesIO(newer), "x.tar"))
    renamed = data.replace(b"k.1.png", b"k.2.png", 2)
    with pytest.raises(SchemaError, match=r"not a whole tar file|member '1\.png' is named"):
        list(read_tar(io.BytesIO(renamed), "x.tar"))
    with pytest.raises(SchemaError, match="JSON member is malformed"):
        decode_members("k", {"json": b"{}"})
    with pytest.raises(SchemaError, match=r"'k.json' is missing \(has \['txt'\]\)"):
        decode_members("k", {"txt": b""})
    with pytest.raises(SchemaError, match="names the key 'k'"):
        decode_members("other", dict(encode_members(Sample("k", "c", (TEXT,)))))


def test_shard_names_have_six_digits_or_more() -> None:
    assert shard_name("mmc4", 12) == "mmc4-000012"
    assert shard_name("mmc4", 1_234_567) == "mmc4-1234567"
