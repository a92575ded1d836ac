"""Ray Train around the loop: several workers, restarted after one is lost. The only module of training with Ray.

Ray Train's own `fit` runs in a thread, so that signals reach this module (`emu/train/stopping.py`). Checkpoints are the
loop's own. They are reported to Ray Train, when they are whole, without copying them; it counts failures and restarts
the workers, which resume from the newest checkpoint. So a run that was started here can be resumed without Ray, and the
reverse. `out` must be a folder that every node sees.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.util import placement_group_table

from emu.data.batches import Share
from emu.train import checkpoint_folder as folders
from emu.train.checkpoint_folder import FOLDER, CheckpointError, checkpoints, read_progress
from emu.train.loop import (
    Summary,
    check_resume,
    checkpoint_folder,
    read_summary,
    train,
)
from emu.train.plan import Plan
from emu.train.step import Ranks, TrainingError
from emu.train.stopping import Address, Starter, Stopped, StopRequest, end_workers, obey

log = logging.getLogger(__name__)

NOTICE_S, RESIZE_S = 10.0, 60.0
WATCH_S = 0.5
"""Seconds between looks for the notice of a node; Ray Train passes it on after 5 s."""
NOTICED_S = 5.0
"""Seconds in which Ray Train's controller has seen why a worker ends."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints in the folder of a run; it rejects one of another Ray version."""


def train_on_ray(
    plan: Plan,
    num_workers: int,
    use_gpu: bool = False,
    max_failures: int = 3,
    min_workers: int | None = None,
    resize_s: float = RESIZE_S,
) -> Summary:
    """Train on workers of the connected Ray; a lost worker costs the step in progress.

    Another worker then saves what was before it, if it holds all weights; of sharded weights the steps since the last
    checkpoint are taken again. With `min_workers` the run continues with fewer workers while nodes are missing, and
    takes up those that come, at most every `resize_s` seconds; the global batches stay those of `num_workers`. For
    another number of workers, and where a node has notice to go, they save first, as on SIGINT and SIGTERM of this
    process. They end at once when this process ends.

    Raises:
        Stopped: on SIGINT or SIGTERM, when the workers have saved.
        TrainingError: with the error of the lowest failed rank, after more than `max_failures` failures.
        KeyboardInterrupt: on a second SIGINT.
    """
    check_resume(plan)
    folder = Path(plan.out).absolute() / FOLDER
    (folder / SNAPSHOT).unlink(missing_ok=True)  # the directories themselves count
    starter = Starter(ray.util.get_node_ip_address())
    dataclass: Any = plan
    plan = replace(dataclass, out=str(folder.parent), resume="auto", num_ranks=num_workers)
    packed, address = pickle.dumps(plan), starter.address

    def work() -> None:
        # Pickled by value: otherwise Ray Train's controller imports the model's libraries before it starts workers.
        from emu.train.ray_trainer import train_as_worker

        train_as_worker(pickle.loads(packed), address)

    least = num_workers if min_workers is None else min(min_workers, num_workers)
    trainer = TorchTrainer(
        work,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(least, num_workers) if least < num_workers else num_workers,
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=resize_s,
        ),
        run_config=RunConfig(
            name=FOLDER,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_ends_workers_gently(address)],
        ),
    )
    stop = StopRequest()
    try:
        with (
            stop.on_signals(starter.stop_workers),
            _waiting_told(least, use_gpu),
        ):
            _fit(trainer)
    except TrainingFailedError as error:
        raise TrainingError(_reason(error)) from error
    finally:
        starter.close()
    saved = read_progress(checkpoints(checkpoint_folder(plan))[-1]).step
    if stop.signal is not None and saved < plan.train.steps:
        raise Stopped(saved, stop.signal)
    return read_summary(folder.parent)


def _ends_workers_gently(starter: Address) -> Any:
    """A callback of Ray Train's controller, which ends workers for a lost one or for another number of them.

    They have the time to save before. It is pickled by value, for the reason of `work` above.
    """

    class EndsWorkersGently(WorkerGroupCallback):
        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            end_workers(starter)

    return EndsWorkersGently()


def _fit(trainer: TorchTrainer) -> None:
    """`trainer.fit()` in a thread: in the main thread it would take SIGINT for itself, and abort the workers."""
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # signals are handled between
    if failed:
        raise failed[0]


@contextmanager
def _waiting_told(num_workers: int, use_gpu: bool, notice_s: float = NOTICE_S) -> Iterator[None]:
    """Log every `notice_s` what the workers wait for, while Ray cannot place them."""
    known, done, began = set(placement_group_table()), threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(notice_s):
            groups = placement_group_table()
            if any(g["state"] == "PENDING" for name, g in groups.items() if name not in known):
                kind = "GPU" if use_gpu else "CPU"
                free = ray.available_resources().get(kind, 0)
                total = ray.cluster_resources().get(kind, 0)
                log.warning(
                    "waiting for %d %ss, one per worker, since %.0f s: %g of %g in the cluster are free. Training "
                    "begins when other work ends or nodes are added; --num-workers asks for fewer",
                    num_workers,
                    kind,
                    time.monotonic() - began,
                    free,
                    total,
                )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _reason(error: TrainingFailedError) -> str:
    """The error of the lowest failed rank, otherwise Ray's own message."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return str(error)
    rank = min(failures)
    name = type(failures[rank]).__name__
    return f"worker {rank} of the last attempt: {name}: {failures[rank]}"


def train_as_worker(plan: Plan, starter: Address) -> None:
    """The work of one worker of Ray Train."""
    logging.basicConfig(level=logging.INFO)
    context = ray.train.get_context()
    reported = ray.train.get_checkpoint()
    if reported is not None and not checkpoints(checkpoint_folder(plan)):
        raise CheckpointError(
            f"{plan.out}: this worker does not see the checkpoint {reported.path}; --out must be a "
            "folder that all nodes share"
        )
    ranks = Ranks(Share(context.get_world_rank(), context.get_world_size()))
    stop = StopRequest()
    report = _report if plan.checkpoints is None else _report_metrics
    with obey(starter, stop), _stopping_with_a_node(stop):
        try:
            train(plan, ranks, ray.train.torch.get_device(), report, stop=stop)
        except Stopped as stopped:
            log.info("%s", stopped)
            _leave_lost_nodes(ranks)


@contextmanager
def _stopping_with_a_node(stop: StopRequest) -> Iterator[None]:
    """Inside the block, ask for the end when a node of the run has notice to go (Ray drains it)."""
    preemption, is_over = get_train_context().preemption_context, threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_S):
            if preemption.preemption_info is not None:
                stop.make()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _leave_lost_nodes(ranks: Ranks) -> None:
    """After a stop for nodes that have notice to go: end this process on one of them, return on the others.

    Ray Train then starts workers elsewhere, without counting a failure: that is its rule for a worker that ends on such
    a node, while one that returns or raises counts as finished or failed.
    """
    info = get_train_context().preemption_context.preemption_info
    known = ranks.gather([] if info is None else info.preempted_node_ids)
    if ray.get_runtime_context().get_node_id() in {node for nodes in known for node in nodes}:
        time.sleep(NOTICED_S)
        os._exit(0)


def _report(metrics: Mapping[str, Any], checkpoint: folders.Checkpoint | None) -> None:
    """Report metrics on every rank, and on the first the checkpoint, where it is in the folder that Ray knows."""
    if checkpoint is None or ray.train.get_context().get_world_rank():
        ray.train.report(dict(metrics))
        return
    ray.train.report(
        dict(metrics),
        checkpoint=Checkpoint.from_directory(checkpoint.address),
        checkpoint_dir_name=checkpoint.name,
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _report_metrics(metrics: Mapping[str, Any], checkpoint: object) -> None:
    ray.train.report(dict(metrics))
