"""Runs that are killed, and runs on other numbers of workers, against one that was not (`benchmarks/kills.py`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.kills import KillsBenchmark, killed_runs, other_workers
from tests.train.processes import SERVER

Parallel = Literal["ddp", "fsdp"]


def in_clean_process(work: Callable[[Path], None], root: Path) -> int | None:
    """The exit code of work in a process that has differentiated nothing and may have processes of its own."""
    SERVER.set_forkserver_preload(["tests.train.processes"])
    process = SERVER.Process(target=work, args=(root,))
    process.start()
    process.join()
    return process.exitcode


def check_kills(root: Path, parallel: Parallel = "ddp") -> None:
    found = killed_runs(root, KillsBenchmark(parallel=parallel, num_kills=20))
    assert found["kills"] == 20 and found["different"] == 0
    # every step of every run; at least 50 of them come after each kill
    assert found["steps_compared_on_every_worker"] >= found["runs"] * KillsBenchmark().num_steps


def check_sharded_kills(root: Path) -> None:
    check_kills(root, "fsdp")


def check_workers(root: Path) -> None:
    found = other_workers(root, KillsBenchmark(num_steps=48))
    assert found["steps"] == 48 and min(found["whole_epochs"].values()) >= 4
    assert found["largest_relative_difference_of_losses"] < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("check", [check_kills, check_sharded_kills], ids=["copies", "sharded"])
def test_twenty_kills_change_no_bit(tmp_path: Path, check: Callable[[Path], None]):
    assert in_clean_process(check, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_workers_read_the_same_and_lose_the_same(tmp_path: Path):
    assert in_clean_process(check_workers, tmp_path) == 0
