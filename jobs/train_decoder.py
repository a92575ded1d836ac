#!/usr/bin/env python3
"""Trains the visual decoder of a trained model: from the embeddings that the model regresses to images."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from emu.recipes import DecoderTrainConfig, PromptRules
from jobs.cli import checked_options, failing, run_job
from jobs.paths import folder_path, job_path
from jobs.progress import say, say_importing

if TYPE_CHECKING:
    from tqdm import tqdm

    from emu.train.decoder import Advance, DecoderPlan, DecoderSummary

STARTS_AGAIN = "nothing is written; the same command starts again from the beginning"
PRETRAINED_RATE = 1e-4  # the paper's peak learning rate of the U-Net


@dataclass(frozen=True)
class TrainDecoder:
    """Trains the visual decoder, which turns a model's visual embeddings into images.

    For example, after emu train has trained a model on the same dataset:
        emu train-decoder --model run/model --data mmc4

    From Stable Diffusion's weights, into a folder of its own:
        emu train-decoder --model run/model --data mmc4 --pretrained sd-v1-5 --out decoder

    The model is frozen: from the prompt of each image it regresses the embeddings that the decoder is
    conditioned on; a tenth of them is replaced by those of the empty prompt. Without --pretrained a small
    autoencoder is trained first, on the same images. The result, for Stable Diffusion in the layout of diffusers,
    is written atomically; in MODEL/decoder the model uses it from then on. A run that is stopped starts again
    from the beginning.
    """

    model: str
    """Folder of a trained model, such as OUT/model of emu train."""
    data: str
    """Folder or URL of a finished dataset of images with their texts."""
    out: str | None = None
    """Folder of the visual decoder, replaced as a whole. None: MODEL/decoder, where the model finds it."""
    pretrained: str | None = None
    """A folder of pretrained weights, such as Stable Diffusion v1.x in the layout of diffusers.
    Its U-Net is finetuned, with new K and V in the cross-attentions; its autoencoder is kept.
    None: all from scratch, at the sizes in the model's configuration."""
    steps: int | None = None
    """Optimizer steps of the decoder. None: --train.steps."""
    autoencoder_steps: int | None = None
    """Optimizer steps of the autoencoder before; not used with --pretrained.
    None: --train.autoencoder-steps."""
    batch_size: int | None = None
    """Images per step. None: --train.batch-size."""
    learning_rate: float | None = None
    """Peak learning rate of the decoder. None: --train.learning-rate; with --pretrained the paper's 1e-4."""
    seed: int | None = None
    """Seed of initial weights, order of images and noise. None: --train.seed."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """Processes of this machine that share its cores and each batch."""
    train: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)
    rules: PromptRules = field(default_factory=PromptRules)


def plan_of(options: TrainDecoder) -> DecoderPlan:
    """The training that the options describe."""
    from emu.train.decoder import DecoderPlan
    from emu.weights.layout import DECODER

    changes = {
        name: value
        for name in ("steps", "autoencoder_steps", "batch_size", "learning_rate", "seed")
        if (value := getattr(options, name)) is not None
    }
    if options.pretrained is not None:
        changes.setdefault("learning_rate", PRETRAINED_RATE)
    model, source = folder_path(options.model), options.pretrained
    return DecoderPlan(
        model=model,
        data=job_path(options.data),
        out=f"{model}/{DECODER}" if options.out is None else folder_path(options.out),
        pretrained=None if source is None else folder_path(source),
        train=replace(options.train, **changes),
        rules=options.rules,
    )


@contextmanager
def progress(plan: DecoderPlan) -> Iterator[Advance]:
    """A progress bar for each stage, on standard error."""
    from tqdm import tqdm

    from emu.train.decoder import AUTOENCODER, CONDITIONS

    totals = {CONDITIONS: None, AUTOENCODER: plan.train.autoencoder_steps}
    interval_s = 0.5 if sys.stderr.isatty() else 10.0  # a log wants fewer lines
    bars: dict[str, tqdm] = {}

    def advance(stage: str, number: int, loss: float | None) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            unit = "prompt" if stage == CONDITIONS else "step"
            bars[stage] = tqdm(
                desc=stage,
                total=totals.get(stage, plan.train.steps),
                unit=unit,
                mininterval=interval_s,
            )
        if loss is not None:
            bars[stage].set_postfix_str(f"loss {loss:.3f}", refresh=False)
        bars[stage].update(number)

    try:
        yield advance
    finally:
        for bar in bars.values():
            bar.close()


def summary_text(summary: DecoderSummary, seconds: float) -> str:
    """What the training did, in words for a terminal."""
    from emu.train.run_folder import METRICS

    left_out = ", ".join(f"{n:,} {reason}" for reason, n in sorted(summary.left_out.items()))
    lines = ["", f"images     {summary.num_images:,} with {summary.num_prompts:,} prompts"]
    if left_out:
        lines.append(f"left out   {left_out}")
    if summary.autoencoder_loss is not None:
        lines.append(f"autoencoder  loss {summary.autoencoder_loss:.4f} at the end")
    lines += [
        f"decoder    loss {summary.loss:.4f} at the end",
        f"written    {summary.out} (losses in {METRICS})",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def train(options: TrainDecoder) -> str:
    """Train the visual decoder and write it; returns the summary."""
    say_importing("torch")
    import torch

    from emu.train.decoder import train_decoder
    from emu.train.processes import run_in_processes
    from emu.train.step import TrainingError

    began = time.monotonic()
    with checked_options():
        plan = plan_of(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say("loading the model and the images")
    if options.pretrained is None:
        print("no pretrained weights given: the visual decoder is trained from scratch")
    with progress(plan) as advance, failing(TrainingError), checked_options():
        summary = run_in_processes(
            options.num_processes,
            lambda ranks, tell: train_decoder(plan, device, tell, ranks),
            advance,
        )
    return summary_text(summary, time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(TrainDecoder, train, arguments, hint=STARTS_AGAIN, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
