"""Builds from damaged inputs: what can be read is published, the ledger says what is lost, the exit code is 1."""

import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.adopt_shards import main as adopt
from jobs.build_instruct import main as build_instruct
from jobs.build_laion import main as build_laion
from pipelines.miniworld.link_kinds import link_url
from pipelines.miniworld.server import ImageServer
from pipelines.readers.csv import CSV_REASONS
from pipelines.readers.jsonl import LINE_REASONS
from pipelines.readers.parquet import PARQUET_REASONS
from pipelines.readers.tars import TAR_REASONS
from schemas.manifest import Manifest, manifest_from_json
from tests.mmc4.pages import write_images

TALKS = [{"instruction": f"Say {n} and {'x' * n}.", "output": f"It is {n}."} for n in range(300)]
LINES = "".join(json.dumps(talk) + "\n" for talk in TALKS).encode()


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.jsonl", LINES)
        file.writestr("b.jsonl", LINES)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 + 200] ^= 0xFF  # in the second member
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("talks.jsonl.gz", "input_truncated"),
        ("talks.json.gz", "input_truncated"),
        ("talks.json", "input_truncated"),
        ("talks.jsonl.zip", "input_corrupt"),
    ],
)
def test_what_can_be_read_is_published_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, word: str
) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    body = json.dumps(TALKS).encode() if ".json" in path.suffixes[:1] else LINES
    if name.endswith(".zip"):
        path.write_bytes(zipped(path))
    else:
        body = gzip.compress(body) if name.endswith(".gz") else body
        path.write_bytes(body[: len(body) * 2 // 3])
    options = ["--runner=local", f"--dialogues={path}", f"--out={out}"]
    assert build_instruct(options) == 1
    printed = capsys.readouterr()
    manifest = manifest_of(out)
    assert manifest.records.kept > 50 and manifest.records.dropped[word] == 1
    error = printed.err.splitlines()[-1]
    assert error.startswith("error: inputs are damaged, and some of their dialogues are lost: ")
    assert f"'{path}' from record {manifest.records.total} on ({word}: " in error
    assert "--allow-damaged-inputs" in error and "report.html" in printed.out
    assert build_instruct(options) == 1  # a finished build says the same again
    assert build_instruct([*options, "--allow-damaged-inputs"]) == 0
    assert manifest_of(out) == manifest


def test_parquet_files_and_tables_count_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    with ImageServer(images) as server:
        rows = pa.table({"URL": [link_url("image", "red.png")], "TEXT": ["a red square"]})
        for number in range(6):
            pq.write_table(rows, tmp_path / f"part-{number}.parquet")
        for number in range(1, 6):
            broken = tmp_path / f"part-{number}.parquet"
            broken.write_bytes(broken.read_bytes()[:-7])
        out = tmp_path / "out"
        status = build_laion(
            [
                *("--runner=local", f"--metadata={tmp_path}/*.parquet", f"--out={out}"),
                f"--fetch.allow-host={server.allow_host}",
            ]
        )
    assert status == 1
    assert manifest_of(out).records.dropped == {"input_truncated": 5}
    error = capsys.readouterr().err.splitlines()[-1]
    assert "part-1.parquet' from record 1 on (input_truncated: " in error
    assert "part-3.parquet'" in error and "and more" in error and "part-4" not in error


def test_adopted_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, red = tmp_path / "a.tar", write_images(tmp_path / "images") / "red.png"
    with tarfile.open(shard, "w") as tar:
        for number in range(3):
            text = tmp_path / "text"
            text.write_text("words " * 200)
            tar.add(text, f"{number}.txt")
            tar.add(red, f"{number}.png")
    shard.write_bytes(shard.read_bytes()[:9000])
    assert adopt([str(tmp_path), "--corpus=mine"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "some of their samples are lost" in error and ".tar' from record " in error
    assert "--allow-damaged-inputs" not in error
    assert manifest_of(tmp_path).records.kept >= 1


def test_reasons_of_files_are_damage_and_those_of_single_records_are_not() -> None:
    reasons = {**LINE_REASONS, **PARQUET_REASONS, **CSV_REASONS, **TAR_REASONS}
    damage = {word for word, reason in reasons.items() if reason.is_damage}
    assert damage == {"input_truncated", "input_corrupt", "tar_truncated", "tar_corrupt"}


def manifest_of(out: Path) -> Manifest:
    return manifest_from_json((out / "manifest.json").read_text())
