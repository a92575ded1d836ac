#!/usr/bin/env python3
"""Trains the visual decoder of a trained model: from the embeddings that the model regresses to images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from emu.config import Count, Positive
from emu.decoder_recipe import DecoderTrainConfig, PromptRules
from emu.recipes import RECIPES
from jobs.cli import JobError, checked_options, run_job
from jobs.paths import folder_path
from jobs.progress import say
from jobs.training import Workers, check_processes, corpora_of, run_training
from schemas.validation import Checked

if TYPE_CHECKING:
    from emu.train.decoder import DecoderPlan

PRETRAINED = {"learning_rate": 1e-4, "schedule": "staged"}
"""The paper's peak learning rate and schedule of the U-Net, where it starts from pretrained weights."""


@dataclass(frozen=True)
class TrainDecoder(Checked):
    """Trains the visual decoder, which turns a model's visual embeddings into images.

    For example, after emu train has trained a model on the same dataset:
        emu train-decoder --model run/model --data mmc4

    From Stable Diffusion's weights, on the paper's mixture:
        emu train-decoder --model run/model --data coco=laion_coco:7 aesthetics=laion:2 \\
            --pretrained sd-v1-5 --num-workers 8

    The model is frozen. From the prompt of each image it regresses the embeddings that condition the decoder; one
    tenth of them are replaced by those of the empty prompt. They are computed before the first step and kept in
    OUT/conditions. Without --pretrained, a decoder of kind stable_diffusion first trains a small autoencoder.
    The result is OUT/model, with a copy in MODEL/decoder, from which the model then generates images.
    A run resumes like one of emu train.
    """

    model: str
    """Folder of a trained model, such as OUT/model of emu train."""
    data: tuple[str, ...]
    """Folder or address of a finished dataset of images with texts.
    Several form a mixture, each NAME=DIR:WEIGHT."""
    out: str | None = None
    """Folder of the run. With workers on several nodes, all of them must see it. None: MODEL_decoder."""
    decoder: str | None = None
    """Folder to write the trained visual decoder to; an existing one is replaced.
    None: MODEL/decoder, where the model looks for it."""
    pretrained: str | None = None
    """Folder of pretrained weights, such as Stable Diffusion v1.x in the layout of diffusers.
    Its U-Net is finetuned, with new K and V in the cross-attentions. Its autoencoder is kept.
    None: train everything from scratch, at the sizes in the model's configuration."""
    steps: Count | None = None
    """Number of optimizer steps of the decoder. None: --train.steps."""
    autoencoder_steps: int | None = None
    """Number of optimizer steps of the autoencoder, which is trained first; not used with --pretrained.
    None: --train.autoencoder-steps."""
    batch_size: Count | None = None
    """Images per step over all workers. None: --train.batch-size."""
    learning_rate: Positive | None = None
    """Peak learning rate of the decoder. None: --train.learning-rate, or the paper's 1e-4 with --pretrained."""
    seed: int | None = None
    """Seed of initial weights, image order and noise. None: --train.seed."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume the run in OUT if there is one, otherwise start a new one.
    must: fail if there is no run to resume. never: fail if there is one."""
    plan: bool = False
    """Print what the run needs (memory per GPU, operations per step, days) and exit; exit code 1 if it does not fit.
    --model may then be the name of a recipe of emu train, such as emu_14b. --data is not needed."""
    gpu_memory_gb: Positive = 80.0
    """Memory of one GPU in GB (10^9 bytes), for --plan."""
    gpu_tflops: Positive = 989.5
    """Peak of one GPU in bfloat16 TFLOP/s, for --plan. The default is that of an H100."""
    num_workers: Annotated[int, Field(ge=0, description="0 trains without Ray")] = 0
    """Workers of Ray Train, each with one core or one GPU. 0: train in this process, without Ray."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """With --num-workers 0: processes on this machine that share its cores, without Ray."""
    num_cpus: Count | None = None
    """CPU cores for the local Ray that the job starts. None: all, but at least one per worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """End the run with an error after more than this number of worker failures."""
    train: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)
    rules: PromptRules = field(default_factory=PromptRules)

    def __post_init__(self) -> None:
        if self.model is tyro.MISSING:  # in the defaults, which a command line completes
            return
        super().__post_init__()
        check_processes(self.num_processes, self.num_workers)


def train_options(options: TrainDecoder) -> DecoderTrainConfig:
    """The options under --train with the short ones."""
    names = ("steps", "autoencoder_steps", "batch_size", "learning_rate", "seed")
    changes: dict[str, Any] = {
        name: value for name in names if (value := getattr(options, name)) is not None
    }
    if options.pretrained is not None:
        changes = PRETRAINED | changes
    return replace(options.train, **changes)


def plan_of(options: TrainDecoder) -> DecoderPlan:
    """The training that the options describe."""
    from emu.train.decoder import DecoderPlan

    model, source = folder_path(options.model), options.pretrained
    return DecoderPlan(
        model=model,
        data=corpora_of(options.data),
        out=f"{model}_decoder" if options.out is None else folder_path(options.out),
        pretrained=None if source is None else folder_path(source),
        options=train_options(options),
        rules=options.rules,
        resume=options.resume,
    )


def forecast(options: TrainDecoder) -> str:
    """What the run would need, in words; raises JobError if it does not fit, with what would."""
    from emu.train.decoder_plan import described, forecast_decoder, smaller_batches
    from emu.train.forecast import Cluster
    from emu.weights.layout import load_config

    with checked_options():
        is_recipe = options.model in RECIPES
        model = RECIPES[options.model]().model if is_recipe else load_config(Path(options.model))
        config = train_options(options)
        cluster = Cluster(max(1, options.num_workers), options.gpu_memory_gb, options.gpu_tflops)
        say("measuring the visual decoder")
        found = forecast_decoder(model, config, cluster)
    text = described(found, config, cluster)
    if found.fits:
        return text
    others = list(smaller_batches(found))
    raise JobError(
        f"the run does not fit: {found.peak / 1e9:.1f} GB per GPU, the limit is {found.limit_gb:.1f} GB; "
        f"what would: {'; '.join(others) or 'no change of options'}",
        summary=text,
    )


def train_decoder(options: TrainDecoder) -> str:
    """Train, or resume a run, and put the decoder where the model finds it; returns the summary for a terminal."""
    if options.plan:
        return forecast(options)
    from emu.train.decoder import check_target, publish_decoder

    with checked_options():
        target = options.decoder or f"{options.model}/decoder"
        target = folder_path(target)
        check_target(target)
    workers = Workers(
        options.num_workers, options.num_processes, options.num_cpus, options.max_failures
    )
    if options.pretrained is None:
        print("no pretrained weights given: the visual decoder is trained from scratch")
    summary = run_training(lambda: plan_of(options), workers)
    return f"{summary}\ndecoder    {publish_decoder(plan_of(options).out, target)}"


def defaults(arguments: Sequence[str]) -> TrainDecoder:
    """The options before the command line changes them; a plan needs no data."""
    data = () if "--plan" in arguments else tyro.MISSING
    return TrainDecoder(model=tyro.MISSING, data=data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(TrainDecoder, train_decoder, arguments, default=defaults, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
