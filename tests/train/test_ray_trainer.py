"""Ray Train: a run that one process started is resumed by two workers, one of which is killed."""

import time
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from threading import Thread

import psutil
import pytest

from emu.train.checkpoint_folder import FOLDER, checkpoints
from emu.train.loop import TrainPlan
from emu.train.ray_trainer import train_on_ray
from emu.train.run_folder import read_metrics
from emu.train.step import TrainingError
from tests.train.plans import are_equal, mini_plan, weights_of
from tests.train.processes import start, train_rank
from tests.train.test_resume import stopped_after


def in_two(plan: TrainPlan, out: Path) -> TrainPlan:
    """The same global batches on two ranks, in another folder."""
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
    """Kill one worker with signal 9 as soon as there is a checkpoint of a later step."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        if any(c.step > after_step for c in checkpoints(out / FOLDER)):
            victim = max(workers_of_ray(), key=lambda process: process.pid)
            victim.kill()
            killed.append(victim.pid)
            return
        time.sleep(0.005)


@pytest.mark.timeout(600)  # two or four starts of a worker, each of which imports torch
@pytest.mark.parametrize(
    ("num_steps", "is_killed"),
    [(20, False), pytest.param(60, True, marks=pytest.mark.slow)],
    ids=["whole", "one_killed"],
)
def test_two_workers_give_the_weights_of_two_plain_ranks(
    local_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_steps: int,
    is_killed: bool,
):
    # Ray Train takes one report of a checkpoint per interval: 2 s each by default.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    plan = mini_plan(tmp_path, steps=num_steps, checkpoint_every=5)
    stopped_after(plan, 5)
    for name in ("plain", "ray"):
        copytree(plan.out, tmp_path / name)
    ranks = [start(train_rank, r, 2, in_two(plan, tmp_path / "plain")) for r in range(2)]
    killed: list[int] = []
    killer = Thread(target=kill_a_worker, args=(tmp_path / "ray", 5, killed), daemon=True)
    if is_killed:
        killer.start()
    summary = train_on_ray(in_two(plan, tmp_path / "ray"), num_workers=2)
    if is_killed:
        killer.join()
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    assert len(killed) == is_killed
    assert summary.steps == num_steps and summary.samples == 4 * num_steps
    steps = [row["step"] for row in read_metrics(tmp_path / "ray")]
    assert steps == list(range(1, num_steps + 1))
    ours, plain = weights_of(tmp_path / "ray" / "model"), weights_of(tmp_path / "plain" / "model")
    assert are_equal(ours, plain)


@pytest.mark.slow
def test_an_error_of_a_worker_comes_back_with_its_words(local_ray: None, tmp_path: Path):
    plan = mini_plan(tmp_path, steps=4)
    tar = next((Path(plan.data) / "shards").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(TrainingError, match=r"worker 0 .*DatasetError.*the manifest says"):
        train_on_ray(plan, num_workers=1, max_failures=0)
