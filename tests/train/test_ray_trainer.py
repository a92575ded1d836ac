"""Ray Train: a run begun in one process, taken over by two workers, one of which is killed."""

import time
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from threading import Thread

import psutil
import pytest

from emu.train.loop import TrainPlan
from emu.train.ray_trainer import train_on_ray
from emu.train.run_folder import checkpoints, read_metrics
from emu.train.step import TrainingError
from tests.train.plans import are_equal, mini_plan, weights_of
from tests.train.processes import start, train_rank
from tests.train.test_resume import stopped_after


def in_two(plan: TrainPlan, out: Path) -> TrainPlan:
    """The same global batches on two ranks, elsewhere."""
    return replace(plan, out=str(out), train=replace(plan.train, batch_size=2))


def workers_of_ray() -> list[psutil.Process]:
    """Ray Train's workers below this process, and no one else's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it ended while we looked
            continue
    return found


def kill_a_worker(out: Path, after_step: int, killed: list[int]) -> None:
    """Kill one worker with signal 9 as soon as a checkpoint beyond a step is there."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        if any(int(path.name[5:]) > after_step for path in checkpoints(out)):
            victim = max(workers_of_ray(), key=lambda process: process.pid)
            victim.kill()
            killed.append(victim.pid)
            return
        time.sleep(0.005)


@pytest.fixture
def begun(tmp_path: Path) -> TrainPlan:
    plan = mini_plan(tmp_path, steps=60, checkpoint_every=5)
    stopped_after(plan, 5)
    return plan


@pytest.mark.timeout(600)  # two or four starts of a worker, each of which imports torch
@pytest.mark.parametrize(
    "is_killed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "one_killed"]
)
def test_two_workers_give_the_weights_of_two_plain_ranks(
    local_ray: None, begun: TrainPlan, tmp_path: Path, is_killed: bool
):
    for name in ("plain", "ray"):
        copytree(begun.out, tmp_path / name)
    ranks = [start(train_rank, r, 2, in_two(begun, tmp_path / "plain")) for r in range(2)]
    killed: list[int] = []
    killer = Thread(target=kill_a_worker, args=(tmp_path / "ray", 5, killed), daemon=True)
    if is_killed:
        killer.start()
    summary = train_on_ray(in_two(begun, tmp_path / "ray"), num_workers=2)
    if is_killed:
        killer.join()
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    assert len(killed) == is_killed
    assert summary.steps == 60 and summary.samples == 240
    steps = [row["step"] for row in read_metrics(tmp_path / "ray")]
    assert steps == list(range(1, 61))
    ours, plain = weights_of(tmp_path / "ray" / "model"), weights_of(tmp_path / "plain" / "model")
    assert are_equal(ours, plain)


@pytest.mark.slow
def test_an_error_of_a_worker_comes_back_with_its_words(local_ray: None, tmp_path: Path):
    plan = mini_plan(tmp_path, steps=4)
    tar = next((Path(plan.data) / "shards").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(TrainingError, match=r"worker 0 .*DatasetError.*the manifest says"):
        train_on_ray(plan, num_workers=1, max_failures=0)
