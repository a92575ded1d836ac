import gzip
import io
import json
import os
import random
import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.pipeline import FingerprintError
from pipelines.core.run import run
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.readers.files import InputError, refuse_overlap
from pipelines.readers.jsonl import LINE_REASONS, LineSource, read_lines
from schemas.manifest import Manifest
from schemas.sample import KEY_PATTERN
from schemas.validation import ConfigError


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)  # it warns of equal names
    return buffer.getvalue()


def rows(source: LineSource) -> list[dict]:
    return [row for shard in source.plan("mmc4") for row in source.read(shard).to_pylist()]


def test_three_forms_give_the_same_records(tmp_path: Path):
    data = b'{"a":1}\n  \n{"b":2}\r\n\n{"c":"\xc3\xa9"}'
    (tmp_path / "x.jsonl").write_bytes(data)
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "z.jsonl.zip").write_bytes(zipped(("inside.jsonl", data)))
    for name in ("x.jsonl", "y.jsonl.gz", "z.jsonl.zip"):
        found = rows(LineSource([name], base=str(tmp_path)))
        assert [r["record"] for r in found] == [1, 3, 5]
        assert [r["line"].strip() for r in found] == ['{"a":1}', '{"b":2}', '{"c":"é"}']
        assert [r["key"] for r in found] == [f"{name[0]}-000000{n}" for n in (1, 3, 5)]
        assert {r["source"] for r in found} == {name}


def test_shards_cross_files_and_are_read_alone(tmp_path: Path):
    for name, count in (("a", 5), ("b", 1), ("c", 4)):
        lines = "".join(f"{name}{i}\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b"d0\nd1\n"))
    source = LineSource([f"{tmp_path}/*.jsonl", f"{tmp_path}/d.jsonl.gz"], samples_per_shard=4)
    plan = source.plan("mmc4")
    assert [s.name for s in plan] == ["mmc4-000000", "mmc4-000001", "mmc4-000002"]
    assert [s.num_records for s in plan] == [4, 4, 4]
    read = [source.read(s)["line"].to_pylist() for s in reversed(plan)]
    assert read == [["c2", "c3", "d0", "d1"], ["a4", "b0", "c0", "c1"], ["a0", "a1", "a2", "a3"]]


def test_limit_counts_over_all_files(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("1\n2\n3\n")
    source = LineSource([f"{tmp_path}/*"], samples_per_shard=2, limit=4)
    assert [r["key"] for r in rows(source)] == ["a-0000001", "a-0000002", "a-0000003", "b-0000001"]


def test_equal_stems_get_a_hash_and_all_keys_are_valid():
    long = "X" * 300 + ".jsonl"
    names = ["one/docs.jsonl", "two/DOCS.jsonl.zip", "three/Ünder.v2 (1).jsonl.gz", long, ".jsonl"]
    stems = LineSource(names).files.key_stems(names)
    assert len(set(stems.values())) == len(names)
    assert re.fullmatch(r"docs-[0-9a-f]{8}", stems["one/docs.jsonl"])
    assert stems["three/Ünder.v2 (1).jsonl.gz"] == "_nder_v2__1_"
    assert all(re.fullmatch(KEY_PATTERN, f"{s}-0000012") for s in stems.values())


def test_broken_lines_are_rows_with_their_number(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(b"good\n" + b"\xff\xfe\n" + b"a" * 100 + b"\nlast")
    source = LineSource([str(tmp_path / "x.jsonl")], samples_per_shard=1, max_line_bytes=50)
    found = rows(source)
    assert [(r["record"], r["drop_reason"]) for r in found] == [
        (1, None),
        (2, "not_utf8"),
        (3, "record_too_long"),
        (4, None),
    ]
    assert found[1]["drop_detail"] == "byte 0xff at position 0: invalid start byte"
    assert found[2]["drop_detail"] == "more than 50 bytes"
    assert found[1]["line"] is None and found[3]["line"] == "last"


def test_byte_order_mark_is_taken_off_the_first_line_only(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n")
    assert [r["line"] for r in rows(LineSource([f"{tmp_path}/x.jsonl"]))] == ["1", "\ufeff2"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zip"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_archives_lose_their_tail_and_say_so(tmp_path: Path, suffix: str, kept: float):
    data = b"".join(b'{"number": %d, "noise": "%x"}\n' % (i, i**7) for i in range(20_000))
    packed = gzip.compress(data) if suffix.endswith("gz") else zipped(("x.jsonl", data))
    (tmp_path / f"x{suffix}").write_bytes(packed[: int(len(packed) * kept)])
    found = rows(LineSource([str(tmp_path / f"x{suffix}")], samples_per_shard=999))
    assert found[-1]["drop_reason"] == "input_truncated"
    assert [r["record"] for r in found] == list(range(1, len(found) + 1))
    assert all(r["drop_reason"] is None for r in found[:-1])
    if suffix.endswith("gz") and kept > 0.4:
        assert len(found) > 5_000  # what came before the damage is used


def test_damaged_archives_are_rows(tmp_path: Path):
    packed = bytearray(gzip.compress(b"line\n" * 9))
    packed[-8:-4] = b"\0\0\0\0"  # its CRC
    (tmp_path / "x.jsonl.gz").write_bytes(packed)
    archive = bytearray(zipped(("a.jsonl", b"a1\na2\n"), ("b.jsonl", b"b1\n")))
    place = archive.index(b"PK\x01\x02")
    archive[place + 16 : place + 20] = b"\0\0\0\0"  # the CRC of member a
    (tmp_path / "y.jsonl.zip").write_bytes(archive)
    assert rows(LineSource([f"{tmp_path}/x.jsonl.gz"]))[-1]["drop_reason"] == "input_corrupt"
    found = rows(LineSource([f"{tmp_path}/y.jsonl.zip"]))
    assert found[-1]["line"] == "b1"  # the next member is still read
    assert [r["drop_reason"] for r in found if r["line"] is None] == ["input_corrupt"]


def test_rubbish_after_a_whole_gzip_costs_no_record(tmp_path: Path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"1\n2") + b"rubbish")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b"1\n") + gzip.compress(b"2") + b"\0\0")
    found = [(r["line"], r["drop_reason"]) for r in rows(LineSource([f"{tmp_path}/x.jsonl.gz"]))]
    assert found == [("1", None), ("2", None), (None, "input_corrupt")]
    assert [r["line"] for r in rows(LineSource([f"{tmp_path}/y.jsonl.gz"]))] == ["1", "2"]


def test_members_of_a_zip_in_the_order_of_names(tmp_path: Path):
    data = zipped(
        *(("b.jsonl", b"b1"), ("a.JSONL", b"a1\na2"), ("docs/c.jsonl", b"c1\n")),
        *(("__MACOSX/._a.jsonl", b"junk"), ("docs/", b"")),
    )
    (tmp_path / "x.jsonl.zip").write_bytes(data)
    found = rows(LineSource([f"{tmp_path}/x.jsonl.zip"]))
    assert [(r["record"], r["line"]) for r in found] == [(1, "a1"), (2, "a2"), (3, "b1"), (4, "c1")]


def test_members_of_other_forms_are_rows_and_not_read(tmp_path: Path):
    members = [
        ("README.txt", b"How to use this:\nread it.\n"),
        ("a.jsonl", b"a1\na2"),
        ("a.jsonl.gz", gzip.compress(b"packed\n")),
        ("z", b"{}\n"),
    ]
    (tmp_path / "x.jsonl.zip").write_bytes(zipped(*members))
    found = rows(LineSource([f"{tmp_path}/x.jsonl.zip"], samples_per_shard=2))
    assert [(r["record"], r["line"], r["drop_reason"]) for r in found] == [
        (1, None, "not_a_jsonl_member"),
        (2, "a1", None),
        (3, "a2", None),
        (4, None, "not_a_jsonl_member"),
        (5, None, "not_a_jsonl_member"),
    ]
    assert found[0]["drop_detail"] == "member 'README.txt', 26 bytes"


def test_members_of_one_name_are_each_read(tmp_path: Path):
    data = zipped(("a.jsonl", b"first\n"), ("a.jsonl", b"second\n"))
    (tmp_path / "x.jsonl.zip").write_bytes(data)
    found = rows(LineSource([f"{tmp_path}/x.jsonl.zip"]))
    assert [r["line"] for r in found] == ["first", "second"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_any_damage_of_a_zip_is_rows(tmp_path: Path, method: int):
    whole = zipped(("a.jsonl", b"line\n" * 500), ("b.jsonl", b"more\n" * 90), method=method)
    chance, reasons = random.Random(method), set()
    path = tmp_path / "x.jsonl.zip"
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        found = rows(LineSource([str(path)], samples_per_shard=10_000, max_line_bytes=1 << 20))
        reasons |= {r["drop_reason"] for r in found}
    assert reasons >= {None, "input_corrupt", "input_truncated"}
    assert reasons <= {None, *LINE_REASONS}


def test_fsspec_addresses():
    with fsspec.open("memory://lines/x.jsonl.gz", "wb") as file:
        file.write(gzip.compress(b"1\n2\n"))  # pyright: ignore
    exact, pattern = "memory://lines/x.jsonl.gz", "memory://lines/*.gz"
    assert [r["line"] for r in rows(LineSource([exact]))] == ["1", "2"]
    assert LineSource([pattern]).files.names() == ["memory:///lines/x.jsonl.gz"]
    assert [r["line"] for r in rows(LineSource([pattern]))] == ["1", "2"]


def test_folders_with_brackets_are_no_patterns(tmp_path: Path):
    folder = tmp_path / "[ff]" / "a*b"
    folder.mkdir(parents=True)
    (tmp_path / "f").mkdir()
    for path in (folder / "x.jsonl", folder.parent / "y.jsonl", tmp_path / "f" / "z.jsonl"):
        path.write_text("1\n")

    def names(pattern: str, base: Path) -> list[str]:
        return LineSource([pattern], base=str(base)).files.names()

    assert names("*.jsonl", folder) == names("x.jsonl", folder) == ["x.jsonl"]
    assert names("*.jsonl", folder.parent) == ["y.jsonl"]
    assert names("*/*.jsonl", folder.parent) == ["a*b/x.jsonl"]
    assert names("[ff]/*.jsonl", tmp_path) == ["[ff]/y.jsonl"]
    assert names(f"{tmp_path}/[ff]/*.jsonl", Path("/")) == [f"{tmp_path}/[ff]/y.jsonl"]
    assert names("[fg]/*.jsonl", tmp_path) == ["f/z.jsonl"]
    with pytest.raises(InputError, match="which this build writes"):
        refuse_overlap(["*"], str(folder), str(folder / "out"), "mmc4")
    refuse_overlap(["*"], str(folder), str(tmp_path / "out"), "mmc4")


def test_errors_name_the_pattern_and_a_hint(tmp_path: Path):
    (tmp_path / "x.txt").write_text("1\n")
    (tmp_path / "folder").mkdir()
    for pattern, message in [
        ("none-*.jsonl", "no file matches"),
        ("x.txt", "must end in .jsonl"),
        ("folder", "is a folder"),
        ("nosuch://x.jsonl", "cannot be looked up"),
    ]:
        with pytest.raises(InputError, match=message) as raised:
            LineSource([pattern], base=str(tmp_path)).plan("mmc4")
        assert pattern in str(raised.value)
    with pytest.raises(InputError, match="no input named"):
        LineSource([]).plan("mmc4")
    with pytest.raises(
        ConfigError, match="samples_per_shard is 0, give a whole number of at least 1"
    ):
        LineSource(["x"], samples_per_shard=0)
    with pytest.raises(ConfigError, match="limit is 0, give a whole number of at least 1"):
        LineSource(["x"], limit=0)


def test_a_changed_input_is_an_error_and_another_fingerprint(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text("1\n2\n3\n")
    source = LineSource([str(path)])
    plan, before = source.plan("mmc4"), source.fingerprint()
    assert source.fingerprint() == before
    path.write_text("1\n2\n")
    assert source.fingerprint() != before
    with pytest.raises(InputError, match="has changed"):
        source.read(plan[0])


def rewrite(path: Path, data: bytes, seconds: int) -> None:
    """Other bytes under the same name, last changed at a given time."""
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))


def test_inputs_are_recognised_by_size_and_time_or_by_contents(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    page = json.dumps({"url": "u", "text_list": ["a"], "image_info": []}).encode()
    kinds = {False: tmp_path / "by_versions", True: tmp_path / "by_contents"}

    def build(hash_inputs: bool) -> Manifest:
        source = LineSource([str(path)], hash_inputs=hash_inputs)
        pipeline = mmc4.pipeline(Build(source), mmc4.Rules())
        return run(pipeline, str(kinds[hash_inputs]), progress=False)

    rewrite(path, page, 1_000_000_000)
    for hash_inputs in kinds:
        build(hash_inputs)
        assert build(hash_inputs).records.total == 1
    # Touched: the same bytes at another time.
    rewrite(path, page, 1_000_000_001)
    assert build(hash_inputs=True).records.total == 1
    with pytest.raises(FingerprintError, match=r"the inputs \(compared by their versions\)"):
        build(hash_inputs=False)
    # Other bytes of the same size and time.
    rewrite(path, page.replace(b"u", b"v"), 1_000_000_000)
    assert build(hash_inputs=False).records.total == 1
    with pytest.raises(FingerprintError, match=r"the inputs \(compared by their contents\)"):
        build(hash_inputs=True)
    kinds[True] = kinds[False]
    with pytest.raises(FingerprintError, match="by versions there, by contents now"):
        build(hash_inputs=True)


def test_remote_inputs_are_recognised_by_what_the_store_says(s3_bucket: str):
    file, source = f"{s3_bucket}/x.jsonl", LineSource([f"{s3_bucket}/x.jsonl"])
    prints = []
    for data in (b"1", b"1", b"2"):
        with fsspec.open(file, "wb") as opened:
            opened.write(data)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        prints.append((source.fingerprint(), replace(source, hash_inputs=True).fingerprint()))
    assert prints[0][1] == prints[1][1] != prints[2][1]
    assert prints[2][0] not in (prints[0][0], prints[1][0])


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b), max_size=12),
    cap=st.integers(5, 40),
    per_shard=st.integers(1, 4),
)
def test_counting_and_reading_agree_on_anything(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cap: int, per_shard: int
):
    folder = tmp_path_factory.mktemp("lines")
    data = b"\n".join(lines)
    (folder / "x.jsonl").write_bytes(data)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(data))
    counted = [b for b in data.split(b"\n") if len(b) > cap or b.strip()]
    for name in ("x.jsonl", "x.jsonl.gz"):
        source = LineSource([str(folder / name)], samples_per_shard=per_shard, max_line_bytes=cap)
        found = rows(source)
        num_records = 1 if not data and name == "x.jsonl" else len(counted)  # "input_empty"
        assert len(found) == sum(s.num_records for s in source.plan("x")) == num_records
        assert {r["drop_reason"] for r in found} <= {None, *LINE_REASONS}


def test_memory_stays_below_the_cap_on_a_line():
    class Endless(io.RawIOBase):
        left = 200

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return b"x" * size if self.left else b""

    (line,) = read_lines(Endless(), "x.jsonl", max_bytes=1 << 16)  # pyright: ignore
    assert line.reason == "record_too_long"
