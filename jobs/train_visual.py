#!/usr/bin/env python3
"""Pretrains the visual encoder and the Causal Former of a small model from captions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from emu.config import Count
from emu.recipes import RECIPES, VisualTrainConfig, with_vocabulary
from jobs.cli import checked_options, failing, run_job
from jobs.paths import folder_path, job_path
from schemas.validation import Checked

if TYPE_CHECKING:
    from emu.train.visual import VisualPlan, VisualSummary

STARTS_AGAIN = "nothing is written; the same command starts again from the beginning"


@dataclass(frozen=True)
class TrainVisual(Checked):
    """Pretrains the visual encoder and the Causal Former from captions, for models without pretrained EVA-CLIP weights.

    For example, on synthetic image-text pairs:
        emu build pairs --out pairs --num-pairs 20000
        emu train-visual --data pairs --out runs/visual
        emu train --data pairs --init runs/visual/model --out runs/emu --steps 1000

    The labels of an image are the tokens of its caption. Two linear heads predict them, one from the visual encoder
    and one from the causal embeddings; they are discarded afterwards. OUT/model still has a random language model.
    The paper starts from EVA-CLIP instead: emu train --vision-weights.
    """

    data: str
    """Folder or address of a finished dataset of image-text pairs."""
    out: str
    """Folder of the run. An existing OUT/model is replaced."""
    recipe: Literal["tiny"] = "tiny"
    """Recipe with the sizes of the model."""
    steps: Count | None = None
    """Number of optimizer steps. None: --train.steps."""
    seed: int | None = None
    """Seed of initial weights and sample order. None: --train.seed."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """Processes on this machine that share its cores and each batch."""
    tokenizer: str | None = None
    """A sentencepiece tokenizer.model, or the folder that contains it. None: train one on the texts of --data."""
    tokenizer_data: tuple[str, ...] = ()
    """Further datasets whose texts the tokenizer is trained on.
    Name the datasets that the model is trained on later: unseen words are split into pieces of a few letters."""
    train: VisualTrainConfig = field(default_factory=VisualTrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer is not None and self.tokenizer_data:
            raise ValueError(
                f"tokenizer is {self.tokenizer} and tokenizer_data {' '.join(self.tokenizer_data)}: give one of them"
            )


def pretrain_visual(options: TrainVisual) -> str:
    """Train the visual parts; returns the summary for a terminal."""
    import torch
    from tqdm import tqdm

    from emu.train.processes import run_in_processes
    from emu.train.step import TrainingError
    from emu.train.visual import train_visual

    began = time.monotonic()
    with checked_options():
        plan = plan_of(options)
    interval_s = 0.5 if sys.stderr.isatty() else 10.0  # fewer lines in a log file
    with tqdm(total=plan.train.steps, unit="step", desc="visual", mininterval=interval_s) as bar:

        def advance(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
            bar.update(step - bar.n)

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with failing(TrainingError), checked_options():
            summary = run_in_processes(
                options.num_processes,
                lambda ranks, tell: train_visual(plan, device, tell, ranks),
                advance,
            )
    return summary_text(summary, time.monotonic() - began)


def plan_of(options: TrainVisual) -> VisualPlan:
    """The training that the options describe; trains the tokenizer if none is given."""
    from emu.tokenizer import EmuTokenizer
    from emu.train.start import learned_tokenizer
    from emu.train.visual import VisualPlan

    recipe = RECIPES[options.recipe]()
    out, data = folder_path(options.out), job_path(options.data)
    path = Path(out) / "tokenizer.model"
    if options.tokenizer is None:
        texts = [data, *map(job_path, options.tokenizer_data)]
        learned_tokenizer(texts, path, recipe.model.language.vocab_size)
    tokenizer = str(path) if options.tokenizer is None else folder_path(options.tokenizer)
    fitted = with_vocabulary(recipe, EmuTokenizer.load(tokenizer).num_pieces)
    changes = {
        name: value for name in ("steps", "seed") if (value := getattr(options, name)) is not None
    }
    return VisualPlan(
        data=data,
        out=f"{out}/model",
        tokenizer=tokenizer,
        model=fitted.model,
        sequence=fitted.sequence,
        train=replace(options.train, **changes),
    )


def summary_text(summary: VisualSummary, seconds: float) -> str:
    """What the training did, in words for a terminal."""
    from emu.train.run_folder import METRICS

    lines = [
        "",
        f"steps      {summary.steps:,} ({summary.num_images:,} images)",
        f"encoder    predicts {summary.encoder_recall:.1%} of the captions' tokens "
        f"({summary.num_classes} that distinguish images)",
        f"former     predicts {summary.former_recall:.1%} of them",
        f"model      {summary.out} (losses in {METRICS})",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(TrainVisual, pretrain_visual, arguments, hint=STARTS_AGAIN, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
