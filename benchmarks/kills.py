"""Training that is killed at random moments, and resumed on other numbers of workers, against one that never stopped.

    python -m benchmarks.kills
    python -m benchmarks.kills --parallel fsdp

Runs of a small model on a mixture of pairs, documents and clips, in gloo workers of this machine (`--num-processes`).

- kills: two workers; `kill -9` of both at a random moment, again and again, until the run has ended. Every step, also
  one that was taken twice, must have left the same bits as in the run without a kill: weights, optimizer state,
  generator, position in the data, losses, on both workers.
- workers: the same run without dropout, resumed on 2, 1, 2, 3 workers with other numbers of loader threads. Every
  sample must have been read once per epoch, in the same global order, with losses equal to rounding.

Prints JSON lines; fails with AssertionError where something differs.
"""

import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.distributed.tensor import DTensor

from emu.data.mixture import Corpus
from emu.train.checkpoint_folder import FOLDER, checkpoints
from emu.train.loop import Run, TrainPlan
from emu.train.processes import Tell, run_in_processes
from emu.train.step import Ranks
from tests.data.small_dataset import clip, pair, write_dataset
from tests.train.plans import mini_plan

CPU = torch.device("cpu")
WORKERS = ((2, 0), (1, 2), (2, 1), (3, 2))
"""Workers and loader threads of the parts of a run."""


@dataclass(frozen=True)
class KillsBenchmark:
    """Proves that runs resume exactly."""

    subjects: tuple[Literal["kills", "workers"], ...] = ("kills", "workers")
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Full copies of the model, or sharded weights, of which each worker holds and traces its part."""
    num_kills: int = 50
    """Kills in total; a run gets up to five."""
    num_steps: int = 100
    """Steps of a run; kills fall into the first half."""
    seed: int = 0
    """Of the moments of the kills."""


def run_benchmark(options: KillsBenchmark) -> Iterator[dict[str, Any]]:
    """A record per subject."""
    torch.set_num_threads(1)
    for subject in options.subjects:
        with tempfile.TemporaryDirectory() as folder:
            work = killed_runs if subject == "kills" else other_workers
            began = time.monotonic()
            found = work(Path(folder), options)
            yield {
                "benchmark": f"resume_{subject}",
                "parallel": options.parallel,
                "machine": platform.machine(),
                "torch": torch.__version__,
                **found,
                "seconds": round(time.monotonic() - began, 1),
            }


def mixed_plan(root: Path, num_steps: int, dropout: float = 0.1, **train: Any) -> TrainPlan:
    """A run on documents, pairs and clips, three steps in six on documents."""
    plan = mini_plan(root, dropout, steps=num_steps, batch_size=3, checkpoint_every=4, **train)
    pairs = write_dataset(root / "pairs", [pair(n) for n in range(20)])
    clips = write_dataset(root / "clips", [clip(n) for n in range(10)])
    corpora = (Corpus(str(plan.data), "documents", 3), Corpus(str(pairs), "pairs", 2))
    return replace(plan, data=(*corpora, Corpus(str(clips), "clips", 1)))


def killed_runs(root: Path, options: KillsBenchmark) -> dict[str, Any]:
    """Kill runs until there were enough kills; what was compared."""
    whole = mixed_plan(root, options.num_steps, parallel=options.parallel)
    in_workers(whole, 2, options.num_steps)
    expected = traces(whole, 2)
    assert [len(trace) for trace in expected] == [options.num_steps] * 2
    dice = random.Random(options.seed)
    num_kills, num_steps, num_runs, while_saving = 0, 0, 0, 0
    while num_kills < options.num_kills:
        plan = replace(whole, out=str(root / f"killed{num_runs}"))
        wanted = min(5, options.num_kills - num_kills)
        for step in sorted(dice.sample(range(1, options.num_steps // 2), wanted)):
            num_kills += kill_at(plan, step, dice.random() * 0.1)
            while_saving += is_saving(Path(plan.out))
        in_workers(plan, 2, options.num_steps)
        for rank, (ours, theirs) in enumerate(zip(traces(plan, 2), expected, strict=True)):
            by_step = {row["step"]: row for row in theirs}
            for row in ours:
                assert row == by_step[row["step"]], (num_runs, rank, row, by_step[row["step"]])
            assert ours[-1]["step"] == options.num_steps
            num_steps += len(ours)
        same = [(Path(p.out) / "model" / "model.safetensors").read_bytes() for p in (plan, whole)]
        assert same[0] == same[1]
        shutil.rmtree(plan.out)
        num_runs += 1
    return {
        "kills": num_kills,
        "while_saving": while_saving,
        "runs": num_runs,
        "steps_compared_on_every_worker": num_steps // 2,
        "different": 0,
    }


def kill_at(plan: TrainPlan, step: int, delay_s: float) -> int:
    """Start two workers, and kill them some time after a step; 0 if the run has ended before."""
    context = multiprocessing.get_context("fork")
    starter = context.Process(target=_started, args=(plan, 2, plan.train.steps))
    starter.start()
    try:
        while starter.is_alive() and max(map(_last_step, _trace_files(plan, 2))) < step:
            time.sleep(0.002)
        time.sleep(delay_s)
        is_running = starter.is_alive()
    finally:
        if starter.pid is not None and starter.is_alive():
            os.killpg(starter.pid, signal.SIGKILL)
        starter.join()
    return int(is_running)


def is_saving(out: Path) -> bool:
    """Whether a kill has left a checkpoint that is not whole."""
    folder = out / FOLDER
    if not folder.is_dir():
        return False
    whole = {checkpoint.name for checkpoint in checkpoints(folder)}
    return any(entry.is_dir() and entry.name not in whole for entry in folder.iterdir())


def other_workers(root: Path, options: KillsBenchmark) -> dict[str, Any]:
    """Resume a run on other numbers of workers and loader threads; what was compared."""
    whole = mixed_plan(root, options.num_steps, dropout=0.0, parallel=options.parallel)
    in_workers(whole, 2, options.num_steps)
    plan = replace(whole, out=str(root / "resumed"))
    for part, (num_workers, num_threads) in enumerate(WORKERS, start=1):
        resumed = replace(plan, train=replace(plan.train, num_threads=num_threads))
        in_workers(resumed, num_workers, options.num_steps * part // len(WORKERS) // 4 * 4)
    orders = [global_order(traces(p, 3), options.num_steps) for p in (whole, plan)]
    assert orders[0] == orders[1]
    epochs = {name: epochs_of(orders[1], name) for name in ("documents", "pairs", "clips")}
    losses = [[row["loss"] for row in traces(p, 3)[0]] for p in (whole, plan)]
    gaps = [abs(ours / theirs - 1) for theirs, ours in zip(*losses, strict=True)]
    return {
        "workers_and_threads": WORKERS,
        "steps": len(gaps),
        "whole_epochs": epochs,
        "largest_relative_difference_of_losses": max(gaps),
    }


def global_order(found: list[list[dict[str, Any]]], num_steps: int) -> list[tuple[str, list[str]]]:
    """Corpus and keys of each step, joined over the workers."""
    order = []
    for step in range(1, num_steps + 1):
        rows = [row for trace in found for row in trace if row["step"] == step]
        order.append((rows[0]["corpus"], [key for row in rows for key in row["read"]]))
    return order


def epochs_of(order: list[tuple[str, list[str]]], name: str) -> int:
    """The whole epochs of a corpus that were read, each sample once in every one of them."""
    keys = [key for corpus, read in order if corpus == name for key in read]
    size = len(set(keys))
    whole = [keys[start : start + size] for start in range(0, len(keys) - size + 1, size)]
    assert whole and all(len(set(epoch)) == size for epoch in whole), name
    return len(whole)


def in_workers(plan: TrainPlan, num_workers: int, until: int) -> None:
    """Take the steps up to `until` in so many workers, each of which writes a trace."""
    starter = multiprocessing.get_context("fork").Process(
        target=_started, args=(plan, num_workers, until)
    )
    starter.start()
    starter.join()
    assert starter.exitcode == 0, starter.exitcode


def traces(plan: TrainPlan, num_workers: int) -> list[list[dict[str, Any]]]:
    """What each worker has written after its steps."""
    return [
        [json.loads(line) for line in _whole_lines(path)]
        for path in _trace_files(plan, num_workers)
    ]


def _started(plan: TrainPlan, num_workers: int, until: int) -> None:
    os.setpgrp()  # so that all can be killed at one moment
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Grad strides do not match")
    run_in_processes(num_workers, lambda ranks, tell: _traced(plan, ranks, tell, until))


def _traced(plan: TrainPlan, ranks: Ranks, tell: Tell, until: int) -> None:
    Path(plan.out).mkdir(exist_ok=True)
    run = Run(plan, ranks, CPU, time.perf_counter)
    with _trace_files(plan, 3)[ranks.share.rank].open("a") as file:
        if file.tell():
            file.write("\n")  # after a line that a kill has cut
        while run.step < until:
            run.advance()
            file.write(json.dumps(_state(run)) + "\n")
            file.flush()
            if run.step % plan.train.checkpoint_every == 0:
                run.checkpoint(lambda metrics, checkpoint: None)
    run.wait_for_checkpoint(lambda metrics, checkpoint: None)
    if until == plan.train.steps:
        run.finish()
    run.close()


def _state(run: Run) -> dict[str, Any]:
    """What must be the same after a step, as JSON values."""
    return {
        "step": run.step,
        "loss": run.row["loss"],
        "gradient_norm": run.row["gradient_norm"],
        "weights": _digest(run.model.state_dict()),
        "optimizer": _digest(run.optimizer.state_dict()["state"]),
        "generator": _digest(torch.get_rng_state()),
        "data": run.stream.state(),
        "corpus": run.stream.corpus,
        "read": run.stream.read,
    }


def _digest(value: Any) -> str:
    """A hash of all tensors in nested dictionaries, bit for bit."""
    digest = hashlib.sha256()

    def add(inner: Any) -> None:
        if isinstance(inner, DTensor):
            add(inner.to_local())
        elif isinstance(inner, torch.Tensor):
            digest.update(inner.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(inner, dict):
            for name in sorted(inner, key=str):
                digest.update(str(name).encode())
                add(inner[name])
        else:
            digest.update(repr(inner).encode())

    add(value)
    return digest.hexdigest()


def _trace_files(plan: TrainPlan, num_workers: int) -> list[Path]:
    return [Path(plan.out) / f"trace-{rank}.jsonl" for rank in range(num_workers)]


def _whole_lines(path: Path) -> list[str]:
    """The lines of a trace, without those that a kill has cut."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines() if line.endswith("}")]


def _last_step(path: Path) -> int:
    lines = _whole_lines(path)
    return json.loads(lines[-1])["step"] if lines else 0


if __name__ == "__main__":
    for record in run_benchmark(tyro.cli(KillsBenchmark)):
        print(json.dumps(record), flush=True)
