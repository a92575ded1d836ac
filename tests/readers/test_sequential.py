"""Compressed inputs are unpacked once per worker, whatever the number of shards and their order."""

import gzip
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipelines.readers.files import InputFiles
from pipelines.readers.jsonl import LineSource
from pipelines.readers.sequential import MAX_OPEN

LINES = [f'{{"n": {n}}}' for n in range(60)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files in the order in which they are opened."""
    names: list[str] = []
    real = InputFiles.open

    def noted(self: InputFiles, name: str) -> BinaryIO:
        names.append(name)
        return real(self, name)

    monkeypatch.setattr(InputFiles, "open", noted)
    return names


def write(folder: Path, kind: str, name: str = "x") -> str:
    text = "\n".join([*LINES[:20], "", *LINES[20:]]).encode()
    path = folder / f"{name}.jsonl.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jsonl", text)
    return str(path)


def read(source: LineSource, shards: Sequence[Any]) -> list[str]:
    return [line for shard in shards for line in source.read(shard)["line"].to_pylist()]


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_shards_in_order_unpack_a_file_once(tmp_path: Path, kind: str, opened: list[str]) -> None:
    source = LineSource([write(tmp_path, kind)], samples_per_shard=7)
    plan = source.plan("mmc4")
    opened.clear()
    assert read(source, plan) == LINES
    assert len(opened) == 1
    # Two workers take turns, each with its own copy of the source.
    opened.clear()
    workers = [pickle.loads(pickle.dumps(source)) for _ in range(2)]
    parts = [read(workers[n % 2], [shard]) for n, shard in enumerate(plan)]
    assert [line for part in parts for line in part] == LINES
    assert len(opened) == 2


def test_any_order_gives_the_same_lines(tmp_path: Path, opened: list[str]) -> None:
    source = LineSource([write(tmp_path, "gz")], samples_per_shard=7)
    plan = source.plan("mmc4")
    opened.clear()
    for shard in [*reversed(plan), plan[2], plan[2], plan[5]]:
        first = int(shard.name.rpartition("-")[2]) * 7
        assert read(source, [shard]) == LINES[first : first + 7]
    assert (
        len(opened) == len(plan) + 1
    )  # plan[2] after plan[0], and plan[5] after plan[2], lie ahead


def test_counting_the_inputs_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = LineSource([write(tmp_path, "gz")], samples_per_shard=7)
    monkeypatch.setattr("pipelines.readers.jsonl.TOLD_S", 0.0)
    with caplog.at_level("INFO"):
        source.plan("mmc4")
    assert "x.jsonl.gz' line=61 records=60" in caplog.records[-1].getMessage()


def test_few_files_stay_open(tmp_path: Path, opened: list[str]) -> None:
    names = [write(tmp_path, "gz", f"f{n}") for n in range(MAX_OPEN + 2)]
    source = LineSource(names, samples_per_shard=45)
    plan = source.plan("mmc4")
    assert len(read(source, plan)) == 60 * len(names)
    assert len(source._open_readers._readers) == MAX_OPEN
