"""A rank that is lost: another one saves the last step that all have taken, and nothing is done twice."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import pytest

from emu.train.checkpoint_folder import CLAIM, Checkpoint, checkpoints, claim
from emu.train.loop import TrainPlan
from emu.train.run_folder import read_metrics
from emu.train.stopping import Starter, StopRequest, end_workers, obey
from tests.train.plans import are_equal, mini_plan, newest, same_state, weights_of
from tests.train.processes import start, train_rank
from tests.train.test_parallel import losses_of, on_two_ranks, variant

STEPS = 40


def two_ranks(root: Path, **options: object) -> TrainPlan:
    return mini_plan(root, steps=STEPS, batch_size=2, **options)  # type: ignore[arg-type]


def lose_a_rank(plan: TrainPlan, lost: int, after_step: int) -> int:
    """Kill one of two ranks after a step; the step of the newest checkpoint when the other one has ended."""
    Path(plan.out).mkdir(parents=True, exist_ok=True)
    (Path(plan.out) / "meeting").unlink(missing_ok=True)
    ranks = [start(train_rank, rank, 2, plan) for rank in range(2)]
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(rank.exitcode is None for rank in ranks):
        rows = read_metrics(Path(plan.out))
        if rows and rows[-1]["step"] >= after_step:
            break
        time.sleep(0.001)
    assert ranks[lost].exitcode is None
    ranks[lost].kill()
    for rank in ranks:
        rank.join(60)
    assert ranks[lost].exitcode == -signal.SIGKILL and ranks[1 - lost].exitcode == 1
    return newest(plan).step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "every"),
    [(0, 1000), (1, 1000), (1, 1)],
    ids=["first", "second", "while_saving"],
)
def test_the_other_rank_saves_the_last_step(tmp_path: Path, lost: int, every: int):
    whole = two_ranks(tmp_path, checkpoint_every=every)
    on_two_ranks([whole])
    plan = variant(whole, "lost")
    for after in (3, 15):
        saved = lose_a_rank(plan, lost, after)
        logged = [row["step"] for row in read_metrics(Path(plan.out))]
        assert logged == list(range(1, logged[-1] + 1))
        assert saved == logged[-1] >= after, "no step that all have taken is taken again"
    on_two_ranks([plan])
    assert same_state(plan, whole) and losses_of(plan) == losses_of(whole)
    ours, theirs = (weights_of(Path(p.out) / "model") for p in (plan, whole))
    assert are_equal(ours, theirs)


@pytest.mark.slow
def test_of_sharded_weights_nothing_is_saved_alone(tmp_path: Path):
    plan = two_ranks(tmp_path, checkpoint_every=5, parallel="fsdp")
    assert lose_a_rank(plan, 1, 8) == 5


def test_the_first_rank_alone_may_write(tmp_path: Path):
    checkpoint = Checkpoint(str(tmp_path), 7)
    assert claim(checkpoint) and not claim(checkpoint)
    assert (tmp_path / checkpoint.name / CLAIM).is_file()
    assert not checkpoints(tmp_path), "what is claimed is not whole"
    assert claim(replace(checkpoint, step=8))


def test_workers_are_asked_to_save_and_waited_for():
    starter, stops = Starter("127.0.0.1"), [StopRequest(), StopRequest()]
    ended = []

    def work(stop: StopRequest) -> None:
        with obey(starter.address, stop):
            begun.wait()
            while not stop.is_made:
                time.sleep(0.01)
            ended.append(stop)

    begun = Barrier(3, timeout=60)
    workers = [Thread(target=work, args=(stop,), daemon=True) for stop in stops]
    for worker in workers:
        worker.start()
    begun.wait()
    end_workers(starter.address)
    assert len(ended) == 2
    end_workers(starter.address)  # nobody is left
    starter.close()
    end_workers(starter.address)  # nor the starter
