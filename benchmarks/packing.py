"""Real positions per second of packed against padded batches on a mixed stream, forward and backward.

    python -m benchmarks.packing

Sequences have the lengths of the paper's formats: pairs, documents of both samplings, clips, storyboards. Padded
batches hold `batch_size` of them in the order in which they come; packed ones the same in rows. The tower's outputs are
given, so that the time is that of the language model, the Causal Former and the losses. Sides alternate; ratios are
within a round, of the processor time of this process. Subjects:

- mixed: every batch holds sequences of all formats, as often as the paper's table of batch sizes has them;
- uniform: the same, every format equally often;
- homogeneous: every batch holds one format, as in the paper's pretraining.

Three padded sides: `padded` computes every position, as padded batches do; `unpadded` is our own padded layout, which
leaves the padding out of everything but attention; `full_logits` has logits at every position, as the published model.
The other three take the cross-entropy in chunks of the rows with a target.
Prints JSON lines.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.paper_sequences import KINDS, paper_sequence
from emu.config import EmuConfig, LanguageConfig, tiny_config
from emu.data.batches import collate
from emu.data.packing import collate_packed, efficiency, pack
from emu.data.sequence import Sequence
from emu.models.emu import Emu
from emu.models.objective import Batch, Objective

Made = tuple[Sequence, Tensor]
Subject = Literal["mixed", "uniform", "homogeneous"]


@dataclass(frozen=True)
class PackingBenchmark:
    """Compares packed and padded batches."""

    subjects: tuple[Subject, ...] = ("mixed", "uniform", "homogeneous")
    """What a batch holds."""
    batch_size: int = 32
    """Sequences per padded batch."""
    row_length: int = 4096
    """Positions of a packed row at most, as in the recipes (`row_length` times `num_rows`)."""
    width: int = 128
    """Width of the language model."""
    layers: int = 2
    """Its layers."""
    vocabulary: int = 2000
    """Its pieces."""
    num_rounds: int = 3
    """Rounds; medians are printed."""
    num_threads: int = 1
    """Threads of torch."""


def run_benchmark(options: PackingBenchmark) -> Iterator[dict[str, Any]]:
    """A record per subject."""
    torch.set_num_threads(options.num_threads)
    model = Emu(_config(options))
    model.init_weights(0)
    model.train()
    for subject in options.subjects:
        batches = _batches(options, model.config, subject)
        yield {
            "benchmark": "packing",
            "subject": subject,
            "machine": platform.machine(),
            "torch": torch.__version__,
            **{name: value for name, value in asdict(options).items() if name != "subjects"},
            **_compared(options, model, batches),
        }


def _config(options: PackingBenchmark) -> EmuConfig:
    tiny = tiny_config()
    sizes = LanguageConfig(
        options.width, options.layers, 4, options.width * 43 // 16, options.vocabulary, 2048
    )
    former = {**asdict(tiny.former), "num_queries": 32}
    return EmuConfig(
        vision=tiny.vision, former=type(tiny.former)(**former), language=sizes, decoder=None
    )


def _batches(options: PackingBenchmark, config: EmuConfig, subject: Subject) -> list[list[Made]]:
    """Five batches: of all formats, or one of each format."""
    dice = Random(0)
    batches = []
    for kind in KINDS:
        weights = [1] * len(KINDS) if subject == "uniform" else list(KINDS.values())
        chosen = dice.choices(list(KINDS), weights, k=options.batch_size)
        if subject == "homogeneous":
            chosen = [kind] * options.batch_size
        batches.append([_sequence(kind, config, dice) for kind in chosen])
    return batches


def _sequence(kind: str, config: EmuConfig, dice: Random) -> Made:
    sequence = paper_sequence(kind, config, dice)
    vision = config.vision
    return sequence, torch.randn(len(sequence.slots), vision.num_tokens, vision.width)


def _compared(options: PackingBenchmark, model: Emu, batches: list[list[Made]]) -> dict[str, Any]:
    padded = deepcopy(model)
    padded.language.forward_unpadded = padded.language.forward  # type: ignore[method-assign]
    sides: dict[str, Callable[[list[Made]], float]] = {
        "packed": lambda made: _packed(options, model, made),
        "padded": lambda made: _step(padded, _padded(model, made), with_logits=False),
        "unpadded": lambda made: _step(model, _padded(model, made), with_logits=False),
        "full_logits": lambda made: _step(model, _padded(model, made), with_logits=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for _ in range(options.num_rounds):
        for name, work in sides.items():
            began = time.process_time()
            losses[name] = sum(work(made) for made in batches)
            seconds[name].append(time.process_time() - began)
    lengths = [[len(s.ids_L) for s, _ in made] for made in batches]
    real = sum(map(sum, lengths))
    all_positions = sum(len(row) * max(row) for row in lengths)
    rows = [pack(row, options.row_length) for row in lengths]
    fills = {
        number: [efficiency(*each, number) for each in zip(lengths, rows, strict=True)]
        for number in (1, 64)
    }
    rates = {name: round(real / statistics.median(s)) for name, s in seconds.items()}

    def ratio(slow: str) -> float:
        pairs = zip(seconds[slow], seconds["packed"], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 2)

    return {
        "real_positions": real,
        "padding_share": round(1 - real / all_positions, 3),
        "rows_per_batch": [len(each) for each in rows],
        "least_fill": {f"multiple_of_{number}": round(min(f), 4) for number, f in fills.items()},
        "positions_per_s": rates,
        "packed_to_padded": ratio("padded"),
        "packed_to_unpadded": ratio("unpadded"),
        "packed_to_full_logits": ratio("full_logits"),
        "largest_relative_difference": max(abs(x / losses["padded"] - 1) for x in losses.values()),
    }


def _packed(options: PackingBenchmark, model: Emu, made: list[Made]) -> float:
    rows = pack([len(sequence.ids_L) for sequence, _ in made], options.row_length)
    total = 0.0
    for row in rows:
        chosen = [made[index] for index in row]
        batch = collate_packed(chosen, model.config.special.pad, True)
        total += _step(model, batch, with_logits=False)
    return total


def _padded(model: Emu, made: list[Made]) -> Batch:
    sequences, images = [s for s, _ in made], [images for _, images in made]
    return collate(sequences, images, model.config.special.pad, True)


def _step(model: Emu, batch: Batch, with_logits: bool) -> float:
    """Forward and backward; the summed text loss."""
    losses = Objective(model.config.objective)(model(batch, with_logits=with_logits), batch)
    losses.total.backward()
    model.zero_grad()
    return losses.text.item() * int(losses.num_text)


if __name__ == "__main__":
    for record in run_benchmark(tyro.cli(PackingBenchmark)):
        print(json.dumps(record), flush=True)
