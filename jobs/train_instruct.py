#!/usr/bin/env python3
"""Instruction tuning: trains LoRA adapters of a pretrained model on dialogues, with loss on the answers alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import tyro

from emu.config import AdapterConfig, Count, SequenceConfig
from emu.recipes import INSTRUCT_RECIPES, TrainConfig
from jobs.cli import run_job
from jobs.paths import folder_path
from jobs.run_options import RunOptions
from jobs.training import corpora_of, named_recipe, run_training

if TYPE_CHECKING:
    from emu.train.loop import TrainPlan


PAPER_DIALOGUES = ("sharegpt:3", "alpaca", "llava:3", "videochat")


@dataclass(frozen=True, kw_only=True)
class TrainInstruct(RunOptions):
    """Tunes a pretrained model on dialogues of text, images and videos, as the paper does for Emu-I.

    For example, on dialogues written by emu build instruct (here the folder dialogues):
        emu train-instruct --init run/model --data dialogues --out tuned

    Low-rank adapters (LoRA) on the attention of the language model are trained; everything else is frozen.
    OUT/adapter contains only the adapters, in peft's layout. OUT/model is the whole model: in the form of Emu-I, or,
    with --merge, an ordinary model. emu.load and emu serve open it. A run resumes like one of emu train.
    """

    init: str
    """Folder of the pretrained model: OUT/model of emu train, or the output of emu convert."""
    data: tuple[str, ...]
    """Folder or address of a finished dataset of dialogues. Several form a mixture, each NAME=DIR:WEIGHT."""
    recipe: Literal["tiny", "emu_14b"] = "tiny"
    """Steps, batch sizes, lengths and learning rate. emu_14b: those of the paper. The sizes are those of --init."""
    merge: bool = False
    """Merge the adapters into the weights of OUT/model. Also works on a finished run."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Sizes of new adapters. If the model of --init already has adapters, their sizes are kept."""
    dialogue_length: Count = INSTRUCT_RECIPES["tiny"]().sequence.dialogue_length
    """Maximum number of positions per dialogue, images included. A longer one is cut at its end."""
    train: TrainConfig = field(default_factory=lambda: INSTRUCT_RECIPES["tiny"]().train)

    def __post_init__(self) -> None:
        if self.init is not tyro.MISSING:  # as in the defaults of a recipe
            super().__post_init__()


def train_instruct(options: TrainInstruct) -> str:
    """Tune, or resume a run, and write the adapters; returns the summary for a terminal."""
    if options.plan:
        model = INSTRUCT_RECIPES[options.recipe]().model
        lengths = SequenceConfig(dialogue_length=options.dialogue_length)
        return options.forecast(model, options.train, lengths, options.data or PAPER_DIALOGUES)
    summary = run_training(lambda: plan_of(options), options.workers, options.compare)
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
        train=options.config(options.train),
        init=init,
        use_features=options.use_features,
        resume=options.resume,
        checkpoints=options.checkpoint_address(),
    )


def recipe_defaults(arguments: Sequence[str]) -> TrainInstruct:
    """The options before the command line changes them: --dialogue-length and --train.* of its --recipe."""
    recipe, is_plan = named_recipe(arguments, INSTRUCT_RECIPES), "--plan" in arguments
    return TrainInstruct(
        init="." if is_plan else tyro.MISSING,
        data=() if is_plan else tyro.MISSING,
        out="." if is_plan else tyro.MISSING,
        dialogue_length=recipe.sequence.dialogue_length,
        train=recipe.train,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(
        TrainInstruct, train_instruct, arguments, default=recipe_defaults, log_level="warning"
    )


if __name__ == "__main__":
    sys.exit(main())
