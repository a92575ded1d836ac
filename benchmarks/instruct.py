"""What instruction tuning gives a small model: exact answers to held-out questions before and after.

    python -m benchmarks.instruct --model demo_out/run/model

Builds the dialogues of two synthetic worlds, one to tune on and one to ask about, tunes the adapters with
`emu train-instruct`, and asks the first question of every held-out dialogue in the template of the server, through
`emu.load`. An answer counts if it equals the true one without case, spaces and a final full stop. `before` is the same
model with untrained adapters. Prints a JSON line.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import emu
from emu.data.dataset import ShardReader
from emu.data.dialogue import Plain, conversation, turns_of
from emu.generate.engine import Engine
from emu.generate.prompts import TextOptions
from emu.models.emu import add_instruct_tokens
from emu.tokenizer import EmuTokenizer
from emu.weights.store import load_model
from jobs import build_instruct, train_instruct
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.dialogues import write_dialogues
from schemas.sample import Sample


@dataclass(frozen=True)
class InstructBenchmark:
    """Tunes a model and asks it."""

    model: Path
    """A pretrained model of the synthetic world, such as that of the demo."""
    num_dialogues: int = 3000
    """Records to tune on."""
    num_held_out: int = 240
    """Records to ask about, of another seed."""
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 16
    """Dialogues per step."""
    learning_rate: float = 4e-3
    """Peak learning rate of the adapters."""
    rank: int = 16
    """Of the adapters."""
    seed: int = 0
    """Of both worlds and of the tuning."""


def run_benchmark(options: InstructBenchmark) -> dict[str, Any]:
    """Shares of exact answers before and after, in all and by form of the record."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = _dialogues(root / "train", options.seed, options.num_dialogues)
        asked = list(_samples(_dialogues(root / "held", options.seed + 1, options.num_held_out)))
        began = time.perf_counter()
        words = f"--init {options.model} --data {data} --out {root / 'run'} --num-workers 0"
        words += f" --steps {options.steps} --batch-size {options.batch_size} --seed {options.seed}"
        words += f" --adapter.rank {options.rank} --adapter.alpha {options.rank}"
        words += f" --train.optim.language-lr {options.learning_rate}"
        if train_instruct.main(words.split()):
            raise RuntimeError("the tuning failed; its output is above")
        seconds = time.perf_counter() - began
        tuned = exact_answers(emu.load(root / "run/model"), asked)
        return {
            "benchmark": "instruct",
            "steps": options.steps,
            "num_dialogues": options.num_dialogues,
            "num_asked": len(asked),
            "before": exact_answers(untuned(options.model), asked),
            "after": tuned,
            "seconds": round(seconds, 1),
        }


def untuned(folder: Path) -> Engine:
    """The model with rows for the roles, which nothing has trained."""
    model, tokenizer = load_model(folder)
    add_instruct_tokens(model, tokenizer)
    return Engine(model, EmuTokenizer(tokenizer.model_bytes, instruct=True))


def exact_answers(engine: Engine, samples: list[Sample]) -> dict[str, float]:
    """The share of first questions that are answered exactly: `all`, and by form."""
    right, number = Counter[str](), Counter[str]()
    for sample in samples:
        images = [s.image or b"" for s in sample.segments if s.image is not None]
        turns = turns_of(sample.segments, images)
        roles = [role for role, _ in turns]
        first = roles.index("assistant")
        prompt = [p.text if isinstance(p, Plain) else p for p in conversation(turns[:first])]
        truth = "".join(p.text for p in turns[first][1] if isinstance(p, Plain))
        (answer,) = engine.generate_text([prompt], TextOptions(max_new_tokens=32))
        form = str(sample.meta.get("form"))
        for name in ("all", form):
            number[name] += 1
            right[name] += _plain(answer) == _plain(truth)
    return {name: round(right[name] / number[name], 3) for name in sorted(number)}


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(". ")


def _dialogues(root: Path, seed: int, number: int) -> Path:
    config = MiniworldConfig(seed=seed, num_documents=number, bad_share=0.0, max_things=1)
    write_dialogues(config, root / "world")
    words = f"--dialogues {root}/world/dialogues/* --media {root}/world/images --out {root}/data"
    if build_instruct.main([*words.split(), "--runner", "local"]):
        raise RuntimeError("the build failed; its output is above")
    return root / "data"


def _samples(data: Path) -> Iterator[Sample]:
    reader = ShardReader(str(data), 0, shuffle=False)
    for index in range(len(reader)):
        yield reader.visit(index).sample


if __name__ == "__main__":
    print(json.dumps(run_benchmark(tyro.cli(InstructBenchmark))), flush=True)
