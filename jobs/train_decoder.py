#!/usr/bin/env python3
"""Trains the visual decoder of a trained model: from the embeddings that the model regresses to images."""

import inspect
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import tyro
from tqdm import tqdm

from emu.data.dataset import DatasetError
from emu.train.decoder import (
    AUTOENCODER,
    CONDITIONS,
    Advance,
    DecoderPlan,
    DecoderSummary,
    DecoderTrainConfig,
    train_decoder,
)
from emu.train.decoder_data import PromptRules
from emu.train.run_folder import METRICS
from emu.train.step import TrainingError
from emu.weights.layout import DECODER
from jobs.cli import (
    BAD_VALUE,
    COMPLETE,
    FAILED,
    folder_path,
    interrupted,
    job_path,
    report_error,
    start_logging,
)

STARTS_AGAIN = "nothing is written; the same command starts again from the beginning"
PRETRAINED_RATE = 1e-4  # the paper's peak learning rate of the U-Net


@dataclass(frozen=True)
class TrainDecoder:
    """Trains the visual decoder, which turns a model's visual embeddings into images.

    A first try, after jobs/train_emu.py has trained a model on the same dataset:
        jobs/train_decoder.py --model run/model --data mmc4

    From Stable Diffusion's weights, into a folder of its own:
        jobs/train_decoder.py --model run/model --data mmc4 --pretrained sd-v1-5 --out decoder

    The model is frozen: from the prompt of each image it regresses the embeddings that the decoder is
    conditioned on; a tenth of them is replaced by those of the empty prompt. Without --pretrained a small
    autoencoder is trained first, on the same images. The result, for Stable Diffusion in the layout of diffusers,
    is written atomically; in MODEL/decoder the model uses it from then on. A run that is stopped starts again
    from the beginning.
    """

    model: str
    """Folder of a trained model, such as OUT/model of jobs/train_emu.py."""
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
    train: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)
    rules: PromptRules = field(default_factory=PromptRules)


def plan_of(options: TrainDecoder) -> DecoderPlan:
    """The training that the options describe."""
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


def main(arguments: list[str] | None = None) -> int:
    """Run the job; 0 if the visual decoder is written, 1 if not, 2 if an option or the data is wrong, 130 on Ctrl-C."""
    start_logging(logging.WARNING)
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        options = tyro.cli(
            TrainDecoder,
            args=arguments,
            description=inspect.getdoc(TrainDecoder),
            prog="jobs/train_decoder.py",
        )
        plan = plan_of(options)
        if options.pretrained is None:
            print("no pretrained weights given: the visual decoder is trained from scratch")
        with progress(plan) as advance:
            summary = train_decoder(plan, device, advance)
    except KeyboardInterrupt:
        return interrupted(STARTS_AGAIN)
    except (ValueError, OSError, DatasetError) as error:
        return report_error(error, BAD_VALUE)
    except TrainingError as error:
        return report_error(error, FAILED)
    print(summary_text(summary, time.monotonic() - began))
    return COMPLETE


if __name__ == "__main__":
    sys.exit(main())
