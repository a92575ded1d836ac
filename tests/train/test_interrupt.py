"""Ctrl-C while features are computed: one line, status 130, and a start after it ends in the same bytes."""

import shutil
from pathlib import Path

import pytest

from jobs import precompute_features
from tests.data.small_dataset import document, write_dataset
from tests.interrupts import interrupted

GOES_ON = "stopped; the same command resumes where it stopped"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [document(number, 4) for number in range(40)]
    return write_dataset(tmp_path_factory.mktemp("interrupt") / "docs", documents, 2)


def features(data: Path) -> dict[str, bytes]:
    """Everything in a dataset with features."""
    return {p.relative_to(data).as_posix(): p.read_bytes() for p in data.rglob("*") if p.is_file()}


def compute(data: Path) -> int:
    return precompute_features.main(
        ["--data", str(data), "--num-workers", "0", "--batch-size", "1"]
    )


def stop_and_go_on(repository: Path, data: Path, tmp_path: Path, *options: object) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for copy in (whole, stopped):
        shutil.copytree(data, copy)
    assert compute(whole) == 0
    ended = interrupted(
        repository,
        lambda: len(list(stopped.glob("features/*.arrow"))) >= 2,
        *("jobs.precompute_features", "--data", stopped, *options),
    )
    assert (ended.exit_code, ended.last_line) == (130, GOES_ON), ended.error
    assert "Traceback" not in ended.error
    num_done = len(list(stopped.glob("features/*.arrow")))
    assert 2 <= num_done < 20
    assert '"features": null' in (stopped / "manifest.json").read_text()
    assert compute(stopped) == 0
    assert features(stopped) == features(whole)


@pytest.mark.slow
def test_features_that_are_stopped_go_on(repository: Path, data: Path, tmp_path: Path):
    stop_and_go_on(repository, data, tmp_path, "--num-workers", 0, "--batch-size", 1)


@pytest.mark.slow
def test_features_on_ray_that_are_stopped_go_on(repository: Path, data: Path, tmp_path: Path):
    stop_and_go_on(repository, data, tmp_path, "--num-workers", 1, "--batch-size", 1)
