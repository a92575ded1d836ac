"""Training plans small enough for tests: a model of some ten thousand weights on a small dataset."""

import json
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from emu.config import EmuConfig, SequenceConfig, tiny_config
from emu.recipes import OptimConfig, TrainConfig
from emu.train.checkpoint import read_tensors
from emu.train.checkpoint_folder import Checkpoint, checkpoints
from emu.train.loop import TrainPlan, checkpoint_folder
from emu.train.plan import Stage
from emu.train.step import Ranks
from schemas.sample import Sample
from tests.data.small_dataset import document, small_tokenizer, write_dataset

SEQUENCE = SequenceConfig(pair_length=48, window_length=56, sampled_length=48)


def mini_config(vocab_size: int, dropout: float = 0.1) -> EmuConfig:
    """All parts of the model at the smallest size that still trains."""
    tiny = tiny_config(vocab_size)
    vision = replace(
        tiny.vision, image_size=16, patch_size=8, width=32, layers=1, heads=2, mlp_hidden=48
    )
    former = replace(
        tiny.former,
        d_model=32,
        d_kv=16,
        num_heads=2,
        num_layers=1,
        d_ff=48,
        num_queries=4,
        dropout=dropout,
    )
    language = replace(
        tiny.language, hidden_size=48, num_layers=1, num_heads=2, intermediate_size=96
    )
    return replace(tiny, vision=vision, former=former, language=language, decoder=None)


@dataclass(frozen=True)
class SlowPlan(TrainPlan):
    """A plan whose steps take time, and which notes in `OUT/begun.jsonl` each step that a rank begins."""

    seconds: float = 0.1

    def open(self, ranks: Ranks, device: torch.device) -> Stage:
        """The stage with slower steps."""
        stage = super().open(ranks, device)

        def set_rates(step: int) -> float:
            share = ranks.share
            with (Path(self.out) / "begun.jsonl").open("a") as file:
                file.write(json.dumps([step, share.rank, share.world_size]) + "\n")
            time.sleep(self.seconds)
            return stage.set_rates(step)

        return replace(stage, set_rates=set_rates)


def slow_plan(plan: TrainPlan, **changes: Any) -> SlowPlan:
    """The plan with slow steps."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return SlowPlan(**values | changes)


def begun(out: str | Path) -> list[tuple[int, int, int]]:
    """The steps that ranks of a slow plan have begun: step, rank, number of ranks."""
    path = Path(out) / "begun.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [tuple(json.loads(line)) for line in lines]


def some_documents() -> list[Sample]:
    """Documents with no, one and several images."""
    return [document(number, number % 4) for number in range(24)]


def mini_plan(root: Path, dropout: float = 0.1, **train: Any) -> TrainPlan:
    """A plan on a dataset that is written into `root` on first use; `train` changes its TrainConfig."""
    data, tokenizer = root / "data", root / "tokenizer.model"
    if not data.is_dir():
        write_dataset(data, some_documents(), 7)
        small_tokenizer(tokenizer)
    from emu.tokenizer import EmuTokenizer

    model = mini_config(EmuTokenizer.load(tokenizer).num_pieces, dropout)
    defaults: dict[str, Any] = {
        "steps": 6,
        "batch_size": 4,
        "checkpoint_every": 2,
        "num_threads": 0,
        "optim": OptimConfig(vision_lr=1e-3, former_lr=1e-3, language_lr=1e-3),
    }
    config = TrainConfig(**defaults | train)
    return TrainPlan(str(data), str(root / "out"), str(tokenizer), model, SEQUENCE, config)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a model directory."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def newest(plan: TrainPlan) -> Checkpoint:
    """The checkpoint that the run resumes from."""
    return checkpoints(checkpoint_folder(plan))[-1]


def same_state(plan: TrainPlan, other: TrainPlan) -> bool:
    """True for the same bits of weights and optimizer state in the newest checkpoints of two runs."""
    return are_equal(read_tensors(newest(plan)), read_tensors(newest(other)))


def are_equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """True for the same names and the same bits."""
    return set(some) == set(others) and all(torch.equal(some[n], others[n]) for n in some)
