"""Ray Train with `min_workers`: workers and nodes that are lost, and come back, in a cluster of two nodes."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emu.recipes import OptimConfig
from emu.train.loop import TrainPlan
from emu.train.run_folder import read_metrics
from tests.conftest import REPOSITORY
from tests.train.plans import SlowPlan, are_equal, begun, mini_plan, slow_plan, weights_of
from tests.train.test_parallel import losses_of, on_two_ranks, variant
from tests.train.test_ray_trainer import workers_of_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
WAIT_S = 600.0


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes with a core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    yield cluster
    cluster.shutdown()


def a_plan(root: Path, num_steps: int, **options: object) -> TrainPlan:
    """A run on two ranks, with checkpoints farther apart than its end.

    Its learning rates are small: at large ones, rounding grows from step to step.
    """
    rates = OptimConfig(vision_lr=1e-5, former_lr=1e-5, language_lr=1e-5)
    options = {"batch_size": 2, "checkpoint_every": 1000, "optim": rates} | options
    return mini_plan(root, dropout=0.0, steps=num_steps, **options)


@contextmanager
def running(
    cluster: Any, plan: SlowPlan, min_workers: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """The run as a process of its own."""
    out = Path(plan.out)
    out.mkdir()
    pickled = out / "plan.pickle"
    pickled.write_bytes(pickle.dumps(plan))
    command = [sys.executable, "-m", "tests.train.elastic_run", cluster.address, str(pickled)]
    with (out / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(min_workers)], cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
        assert process.wait(WAIT_S) == 0, (out / "log").read_text()[-5000:]
    finally:
        process.kill()
        process.wait()


def until(is_true: Callable[[], bool], process: subprocess.Popen[bytes], plan: SlowPlan) -> None:
    """Wait while the run continues."""
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        said = Path(plan.out, "log").read_text()[-5000:]
        assert process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.01)


def workers_at(plan: SlowPlan, step: int) -> Callable[[], bool]:
    """Whether that step, or a later one, has been begun."""
    return lambda: any(found >= step for found, _, _ in begun(plan.out))


def sizes(plan: SlowPlan) -> list[int]:
    """The numbers of workers that a run had, one after the other."""
    found: list[int] = []
    for _, _, size in begun(plan.out):
        if found[-1:] != [size]:
            found.append(size)
    return found


def done_twice(plan: SlowPlan) -> int:
    """Steps that the first rank has begun more than once."""
    steps = Counter(step for step, rank, _ in begun(plan.out) if rank == 0)
    assert set(steps) == set(range(plan.train.steps))
    return sum(steps.values()) - len(steps)


def is_logged_once(plan: SlowPlan) -> bool:
    steps = [row["step"] for row in read_metrics(Path(plan.out))]
    return steps == list(range(1, plan.train.steps + 1))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_costs_the_step_in_progress(cluster: Any, tmp_path: Path, victim: int):
    cluster.add_node(**NODE)
    whole = a_plan(tmp_path, 60)
    plan = slow_plan(variant(whole, "killed"))
    with running(cluster, plan) as process:
        until(workers_at(plan, 10), process, plan)
        workers = sorted(workers_of_ray(), key=lambda worker: worker.pid)
        assert len(workers) == 2
        os.kill(workers[victim].pid, signal.SIGKILL)
    on_two_ranks([whole])
    assert sizes(plan) == [2] and is_logged_once(plan)
    assert done_twice(plan) <= 1
    assert losses_of(plan) == losses_of(whole)
    ours, theirs = (weights_of(Path(p.out) / "model") for p in (plan, whole))
    assert are_equal(ours, theirs)


def test_a_run_shrinks_with_a_lost_node_and_grows_with_a_new_one(cluster: Any, tmp_path: Path):
    node = cluster.add_node(**NODE)
    whole = a_plan(tmp_path, 300)
    plan = slow_plan(variant(whole, "elastic"), seconds=0.15)
    with running(cluster, plan) as process:
        until(workers_at(plan, 10), process, plan)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: sizes(plan) == [2, 1], process, plan)
        alone = len(begun(plan.out))
        until(lambda: len(begun(plan.out)) > alone + 10, process, plan)
        cluster.add_node(**NODE)
    on_two_ranks([whole])
    assert sizes(plan) == [2, 1, 2] and is_logged_once(plan)
    assert done_twice(plan) <= 1, "of the lost node; nothing for the new one"
    assert losses_of(plan) == pytest.approx(losses_of(whole), rel=1e-6, abs=1e-6)


def test_a_node_with_notice_to_go_is_left_without_losing_a_step(cluster: Any, tmp_path: Path):
    node = cluster.add_node(**NODE)
    whole = a_plan(tmp_path, 200)
    plan = slow_plan(variant(whole, "drained"))
    with running(cluster, plan) as process:
        until(workers_at(plan, 10), process, plan)
        drain(cluster, node.node_id)
    on_two_ranks([whole])
    assert sizes(plan) == [2, 1] and is_logged_once(plan)
    assert done_twice(plan) == 0
    assert losses_of(plan) == pytest.approx(losses_of(whole), rel=1e-6, abs=1e-6)


def drain(cluster: Any, node: str) -> None:
    """What an autoscaler does when a spot machine has notice."""
    options = f"--address {cluster.address} --node-id {node} --deadline-remaining-seconds 120"
    why = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot"
    ray = Path(sys.executable).with_name("ray")
    subprocess.run([ray, "drain-node", *options.split(), *why.split()], check=True)
