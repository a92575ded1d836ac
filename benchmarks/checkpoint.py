"""How long a step is blocked by a checkpoint: written in the background, against waited for.

    python -m benchmarks.checkpoint
    python -m benchmarks.checkpoint --gigabytes 2 --folder /mnt/disk/tmp

Prints JSON lines. Both sides save the same weights and AdamW state to the same folder in turns; the ratio is taken
within a turn. In the background a step is blocked while the save is begun, and before the optimizer's step until the
copy is made; else until the checkpoint is whole. The time of the steps beside a save is printed too, since copying and
writing take processor time.
"""

import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn
from torch.optim import AdamW

from emu.train.checkpoint import CheckpointWriter
from emu.train.checkpoint_folder import Progress

BYTES_PER_WEIGHT = 12
"""A float32 weight and AdamW's two moments."""


@dataclass(frozen=True)
class CheckpointBenchmark:
    """Compares checkpoints in the background with checkpoints that are waited for."""

    gigabytes: float = 1.0
    """Weights and optimizer state."""
    width: int = 1024
    """Width of the square layers."""
    rows: int = 128
    """Rows of a batch: how long a step computes before it changes the weights."""
    num_rounds: int = 5
    """Turns of both sides, after one that is not counted."""
    folder: str | None = None
    """Where to write; None: the folder for temporary files."""
    num_threads: int = 1
    """Threads of torch."""


def run_benchmark(options: CheckpointBenchmark) -> Iterator[dict[str, Any]]:
    """One record: blocked seconds, their ratio, the seconds of a step alone and beside a save."""
    torch.set_num_threads(options.num_threads)
    layers = max(1, round(options.gigabytes * 1e9 / BYTES_PER_WEIGHT / options.width**2))
    model = nn.Sequential(
        *(nn.Linear(options.width, options.width, bias=False) for _ in range(layers))
    )
    names, weights = zip(*model.named_parameters(), strict=True)
    optimizer = AdamW([{"weight_names": list(names), "params": list(weights)}], fused=True)
    marks: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: marks.append(time.perf_counter()))
    where = Path(tempfile.mkdtemp(dir=options.folder))
    writer = CheckpointWriter(str(where), model, optimizer, keep=1)
    optimizer.register_step_pre_hook(lambda *_: marks.append(time.perf_counter()))
    rows = torch.randn(options.rows, options.width)

    def step() -> float:
        """The seconds of a step that the copy of a checkpoint blocks."""
        model(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return marks[-1] - marks[-2]

    found: dict[str, list[float]] = {
        n: [] for n in ("background", "waited", "ratio", "step", "step_beside")
    }
    step()
    try:
        for number in range(options.num_rounds + 1):
            taken = {"step": _seconds(step)}
            began = time.perf_counter()
            writer.save(_progress(2 * number + 1))
            writer.wait()
            taken["waited"] = time.perf_counter() - began
            began = time.perf_counter()
            writer.save(_progress(2 * number + 2))
            called = time.perf_counter() - began
            blocked = step()
            taken["step_beside"] = time.perf_counter() - began
            writer.wait()
            taken["background"] = called + blocked
            taken["ratio"] = taken["waited"] / taken["background"]
            for name, value in taken.items() if number else ():
                found[name].append(value)
    finally:
        writer.close()
        shutil.rmtree(where)
    yield {
        **asdict(options),
        **{f"{name}_s" if name != "ratio" else name: _middle(v) for name, v in found.items()},
        "ratios": [round(ratio, 1) for ratio in found["ratio"]],
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _progress(step: int) -> Progress:
    return Progress(step, {}, {}, {})


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _middle(values: list[float]) -> float:
    return round(statistics.median(values), 4)


if __name__ == "__main__":
    for record in run_benchmark(tyro.cli(CheckpointBenchmark)):
        print(json.dumps(record))
