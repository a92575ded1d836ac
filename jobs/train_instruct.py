#!/usr/bin/env python3
"""Instruction tuning: trains LoRA adapters of a pretrained model on dialogues, with loss on the answers alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from emu.config import AdapterConfig, Count, SequenceConfig
from emu.recipes import INSTRUCT_RECIPES, Parallel, TrainConfig
from jobs.cli import run_job
from jobs.paths import folder_path, job_path
from jobs.training import Workers, corpora_of, named_recipe, run_training, train_config
from schemas.validation import Checked

if TYPE_CHECKING:
    from emu.train.loop import TrainPlan


@dataclass(frozen=True)
class TrainInstruct(Checked):
    """Tunes a pretrained model on dialogues of text, images and videos, as the paper does for Emu-I.

    On dialogues that emu build instruct wrote (here in the folder dialogues):
        emu train-instruct --init run/model --data dialogues --out tuned

    Low-rank adapters (LoRA) on the attention of the language model are trained, everything else stays as it is.
    OUT/adapter has them alone, in peft's layout; OUT/model is the whole model in the form of Emu-I, or with --merge
    an ordinary model, which emu serve takes; emu.load opens each. A run resumes as that of emu train does.
    """

    init: str
    """Folder of the pretrained model, such as OUT/model of emu train or what emu convert wrote."""
    data: tuple[str, ...]
    """Folder or address of a finished dataset of dialogues; several are a mixture, each NAME=DIR:WEIGHT."""
    out: str
    """Folder of the run. With workers on several nodes, one that all of them see."""
    recipe: Literal["tiny", "emu_14b"] = "tiny"
    """Steps, batch sizes, lengths and learning rate; emu_14b: the paper's. The sizes are those of --init."""
    merge: bool = False
    """Fold the adapters into the weights of OUT/model, also of a run that has finished before."""
    steps: Count | None = None
    """Optimizer steps in total. None: the recipe's (--train.steps)."""
    batch_size: Count | None = None
    """Dialogues per micro-batch and worker, for every corpus. None: the recipe's (--train.batch-size)."""
    seed: int | None = None
    """Seed of the adapters, sample order and dropout masks. None: the recipe's (--train.seed)."""
    use_features: bool = False
    """Train on features that emu features computed with the model of --init."""
    checkpoints: str | None = None
    """Folder or fsspec address of the checkpoints, such as s3://bucket/run; one for each run. None: OUT/checkpoints."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume the run in OUT if there is one, otherwise start one. must, never: an error if that is not so."""
    num_workers: Annotated[int, Field(ge=0, description="0 trains without Ray")] = 2
    """Workers of Ray Train, each with a core or a GPU. 0 trains in this process, without Ray."""
    parallel: Parallel | None = None
    """How several workers share the model: full copies (ddp), or sharded weights (fsdp, hsdp).
    None: the recipe's (--train.parallel), which is fsdp on GPUs and ddp on CPUs."""
    num_cpus: Count | None = None
    """Cores for a Ray that the job starts itself. None: all, but at least one per worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Failures of workers after which the run ends with an error."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Sizes of new adapters; those of an --init that has some stay as they are."""
    dialogue_length: Count = INSTRUCT_RECIPES["tiny"]().sequence.dialogue_length
    """Maximum positions of a dialogue, images included; a longer one is cut at its end."""
    compare: tuple[str, ...] = ()
    """Folders of other runs that OUT/report.html shows beside this one, up to five."""
    train: TrainConfig = field(default_factory=lambda: INSTRUCT_RECIPES["tiny"]().train)

    def __post_init__(self) -> None:
        if self.init is not tyro.MISSING:  # as in the defaults of a recipe
            super().__post_init__()


def train_instruct(options: TrainInstruct) -> str:
    """Tune, or resume a run, and write the adapters; returns the summary for a terminal."""
    workers = Workers(options.num_workers, 1, options.num_cpus, options.max_failures)
    summary = run_training(lambda: plan_of(options), workers, options.compare)
    from emu.weights.adapter import publish_adapter

    found = publish_adapter(folder_path(options.out), folder_path(options.init), options.merge)
    return f"{summary}\nadapter    {found}"


def plan_of(options: TrainInstruct) -> TrainPlan:
    """The run that the options describe."""
    from emu.train.loop import TrainPlan
    from emu.weights.layout import load_config

    init = folder_path(options.init)
    found = load_config(init)
    model = replace(
        found,
        instruct=True,
        adapter=found.adapter or options.adapter,
        objective=replace(found.objective, visual_weight=0.0),  # no regression (paper section 3.4)
    )
    return TrainPlan(
        data=corpora_of(options.data),
        out=folder_path(options.out),
        tokenizer=f"{init}/tokenizer.model",
        model=model,
        sequence=SequenceConfig(dialogue_length=options.dialogue_length),
        train=train_config(
            options.train,
            options.steps,
            options.batch_size,
            options.seed,
            options.use_features,
            options.parallel,
        ),
        init=init,
        use_features=options.use_features,
        resume=options.resume,
        checkpoints=None if options.checkpoints is None else job_path(options.checkpoints),
    )


def recipe_defaults(arguments: Sequence[str]) -> TrainInstruct:
    """The options before the command line changes them: --dialogue-length and --train.* of its --recipe."""
    recipe, absent = named_recipe(arguments, INSTRUCT_RECIPES), tyro.MISSING
    length = recipe.sequence.dialogue_length
    return TrainInstruct(absent, absent, absent, dialogue_length=length, train=recipe.train)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(
        TrainInstruct, train_instruct, arguments, default=recipe_defaults, log_level="warning"
    )


if __name__ == "__main__":
    sys.exit(main())
