"""kill -9 at any moment, any number of times, then a run to the end: the same bytes."""

import random
import signal
from pathlib import Path

import pytest
from engine_jobs import Forks
from numbers_pipeline import contents


@pytest.fixture(scope="module")
def untouched(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("untouched") / "out"
    forks.to_the_end(out)
    return contents(out)


def test_twenty_kills_at_random_file_operations_give_the_same_bytes(
    forks: Forks, tmp_path: Path, untouched: dict[str, str]
) -> None:
    chance, out, num_kills = random.Random(1), tmp_path / "out0", 0
    while num_kills < 20:
        code = forks.run(out, "--kill-at", str(chance.randint(1, 60)))
        assert code in (-signal.SIGKILL, 0)
        num_kills += code == -signal.SIGKILL
        if (out / "manifest.json").exists():
            out = tmp_path / f"out{num_kills}"
    for folder in tmp_path.iterdir():
        forks.to_the_end(folder)
        assert contents(folder) == untouched


def test_kills_from_outside_at_random_times_give_the_same_bytes(
    forks: Forks, tmp_path: Path, untouched: dict[str, str]
) -> None:
    chance, out, codes = random.Random(2), tmp_path / "out", []
    for _ in range(5):
        codes.append(forks.run(out, "--sleep-s", "0.01", kill_after_s=chance.uniform(0.05, 0.5)))
    assert codes.count(-signal.SIGKILL) >= 2, codes
    forks.to_the_end(out)
    assert contents(out) == untouched


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_kill_at_every_file_operation_of_a_build_gives_the_same_bytes(
    forks: Forks, tmp_path: Path
) -> None:
    forks.to_the_end(tmp_path / "untouched", "--records", "20")
    untouched = contents(tmp_path / "untouched")
    number, ended = 0, False
    while not ended:
        number += 1
        out = tmp_path / f"out{number}"
        ended = forks.run(out, "--records", "20", "--kill-at", str(number)) == 0
        forks.to_the_end(out, "--records", "20")
        assert contents(out) == untouched, f"killed at operation {number}"
    assert number > 100
