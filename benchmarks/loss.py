"""Time and memory of the cross-entropy: full logits, rows with a target only, and chunks of those rows.

    python -m benchmarks.loss
    python -m benchmarks.loss --rows 4096 --width 2048

Prints JSON lines. Each side runs forward and backward in a process of its own for its peak memory beyond its inputs
(the gradients are in it); times are taken in one process, in turns, and ratios within a turn.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional

from emu.models.cross_entropy import chunked_cross_entropy

Side = Literal["full", "rows", "chunks"]
SIDES: tuple[Side, ...] = ("full", "rows", "chunks")


@dataclass(frozen=True)
class LossBenchmark:
    """Compares three ways to the same cross-entropy."""

    rows: int = 2048
    """Positions."""
    width: int = 512
    """Width of the hidden states."""
    classes: int = 32_004
    """Rows of the vocabulary."""
    share: float = 0.5
    """Share of the positions that predict a text target; at the paper's lengths about a half."""
    num_rounds: int = 7
    """Rounds; medians of the times and of the ratios within a round are printed."""
    num_threads: int = 1
    """Threads of torch."""
    only: Side | None = None
    """Run this side once and print the peak memory of the process."""


def run_benchmark(options: LossBenchmark) -> Iterator[dict[str, Any]]:
    """One record with times, ratios, memory and the largest difference of the losses."""
    torch.set_num_threads(options.num_threads)
    sides = {side: _side(side, *_inputs(options)) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    losses = {side: work() for side, work in sides.items()}  # warm
    for _ in range(options.num_rounds):
        for side, work in sides.items():
            began = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - began)
    memory = {side: _loss_memory(options, side) for side in SIDES}
    slowdown = [c / f for c, f in zip(seconds["chunks"], seconds["full"], strict=True)]
    yield {
        "benchmark": "loss",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **{k: v for k, v in asdict(options).items() if k != "only"},
        "seconds": {side: round(statistics.median(s), 3) for side, s in seconds.items()},
        "chunks_to_full_time": round(statistics.median(slowdown), 3),
        "loss_memory_mb": {side: round(size) for side, size in memory.items()},
        "full_to_chunks_memory": round(memory["full"] / memory["chunks"], 1),
        "largest_relative_difference": max(abs(x / losses["full"] - 1) for x in losses.values()),
    }


def _inputs(options: LossBenchmark) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.rows, options.width, generator=generator).requires_grad_()
    weight = torch.randn(options.classes, options.width, generator=generator).mul_(0.02)
    labels = torch.randint(0, options.classes, (options.rows,), generator=generator)
    is_target = torch.rand(options.rows, generator=generator) < options.share
    return hidden, weight.requires_grad_(), labels.masked_fill(~is_target, -100)


def _side(side: Side, hidden: Tensor, weight: Tensor, labels: Tensor) -> Callable[[], float]:
    def work() -> float:
        hidden.grad = weight.grad = None
        has_label = labels != -100
        if side == "full":
            loss = functional.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")
        elif side == "rows":
            logits = (hidden[has_label] @ weight.t()).float()
            loss = functional.cross_entropy(logits, labels[has_label], reduction="sum")
        else:
            loss = chunked_cross_entropy(hidden[has_label], weight, labels[has_label])
        loss.backward()
        return loss.item()

    return work


def _loss_memory(options: LossBenchmark, side: Side) -> float:
    """Peak memory of a side in MB beyond its inputs, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loss", "--only", side]
    for name in ("rows", "width", "classes", "share", "num_threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(answer)["loss_mb"]


def _peak_mb() -> float:
    """The kernel's high-water mark; ru_maxrss would include the parent's before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def _once(options: LossBenchmark, side: Side) -> dict[str, float]:
    torch.set_num_threads(options.num_threads)
    small = LossBenchmark(rows=64, width=options.width, classes=64)
    _side(side, *_inputs(small))()  # libraries are loaded
    inputs = _inputs(options)
    before = _peak_mb()
    _side(side, *inputs)()
    return {"loss_mb": _peak_mb() - before}


if __name__ == "__main__":
    chosen = tyro.cli(LossBenchmark)
    records = run_benchmark(chosen) if chosen.only is None else [_once(chosen, chosen.only)]
    for record in records:
        print(json.dumps(record), flush=True)
