from pathlib import Path

import pytest

from jobs.inspect_shards import main
from pipelines.miniworld.server import ImageServer
from tests.mmc4.pages import build, page, write_images, write_pages


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pages = [page(["a", "b"], ["red", "not_found/blue"], [[0.5, 0.1], [0.1, 0.5]])] * 3
    documents = write_pages(tmp_path / "d.jsonl", [*pages, "[]"])
    with ImageServer(write_images(tmp_path / "images")) as server:
        build(documents, tmp_path / "out", server, samples_per_shard=2)
    return tmp_path / "out"


def test_a_complete_dataset_is_printed_and_verified(
    dataset: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(dataset)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "3 with 3 images",
        "not_found",
        "d-0000001",
        "png, 48 x 40",
        "2 shards are complete",
    ):
        assert text in printed, text
    assert main([str(dataset), "--sample", "d-0000003", "--no-verify"]) == 0
    assert "d-0000003" in capsys.readouterr().out
    assert main([str(dataset), "--sample", "nobody"]) == 2


def test_any_changed_byte_is_found(dataset: Path, capsys: pytest.CaptureFixture[str]):
    tar = dataset / "shards/mmc4-000001.tar"
    whole = tar.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        tar.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert main([str(dataset)]) == 1
        assert "mmc4-000001: the tar's sha256" in capsys.readouterr().out
    tar.unlink()
    assert main([str(dataset)]) == 1
    assert "mmc4-000001" in capsys.readouterr().out


def test_an_index_or_ledger_of_another_shard_is_found(
    dataset: Path, capsys: pytest.CaptureFixture[str]
):
    for folder in ("index", "ledger"):
        first, second = (dataset / folder / f"mmc4-00000{i}.parquet" for i in (0, 1))
        kept = second.read_bytes()
        second.write_bytes(first.read_bytes())
        assert main([str(dataset)]) == 1
        assert "mmc4-000001" in capsys.readouterr().out
        second.write_bytes(kept)
    assert main([str(dataset)]) == 0


@pytest.mark.parametrize("content", [b"x" * 99, b"", None])
@pytest.mark.parametrize("options", [[], ["--sample", "d-0000001"], ["--no-verify"]])
def test_a_damaged_index_is_an_error_of_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, options: list[str]
):
    index = dataset / "index/mmc4-000000.parquet"
    if content is None:
        index.unlink()
    else:
        index.write_bytes(content)
    assert main([str(dataset), *options]) == 1
    shown = capsys.readouterr()
    assert "error: cannot read a sample: " in shown.err and "mmc4-000000" in shown.err
    assert ("mmc4-000000: " in shown.out) == (options != ["--no-verify"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xff", "can't decode byte"),
        (b"[]", "a list, not an object"),
        (b'{"schema"', "no JSON"),
        (b"[" * 100_000, "recursion"),
        (b'{"schema": ' + b"9" * 5_000 + b"}", "4300 digits"),
    ],
)
def test_an_invalid_manifest_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
):
    (tmp_path / "manifest.json").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no complete dataset in") and words in error


def test_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert "no complete dataset" in capsys.readouterr().err
