#!/usr/bin/env python3
"""Trains Emu on a published dataset with Ray Train, or in this process without Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from emu.config import ObjectiveConfig, SequenceConfig
from emu.recipes import RECIPES, Recipe, TrainConfig, with_vocabulary
from jobs.cli import run_job
from jobs.paths import folder_path, weights_path
from jobs.run_options import RunOptions
from jobs.training import corpora_of, named_recipe, run_training

if TYPE_CHECKING:
    from emu.data.mixture import Corpus
    from emu.train.loop import TrainPlan


@dataclass(frozen=True, kw_only=True)
class TrainEmu(RunOptions):
    """Trains Emu: text by cross-entropy, images by regression of the next visual embedding.

    For example, on a dataset written by a build job (here the folder mmc4):
        emu train --data mmc4 --out run --steps 200

    Start from the paper's pretrained parts, or from an existing model:
        emu train --recipe emu_llama_7b --vision-weights laion400m_s11b_b41k \\
            --language-weights llama-7b --data mmc4 --out run7b
        emu train --init run/model --data more --out run2

    Train on a mixture, with three steps on pairs for each step on documents:
        emu train --data laion=pairs:3 mmc4=documents:1 --out run3

    Show the values of a recipe:
        emu train --recipe emu_14b --help

    Use 8 GPUs of a cluster:
        ray job submit --working-dir . -- python jobs/train_emu.py --data /shared/mmc4 \\
            --out /shared/run --num-workers 8

    OUT/model is the trained model; OUT/metrics.jsonl and OUT/curves.svg show the progress of the run. A stopped or
    killed run resumes from OUT/checkpoints when it is started again with the same options. The options --train.*,
    --sequence.* and --objective.* change values of the recipe; the defaults shown are those of the recipe.
    Lengths count positions: one per token, and 34 per image at the paper's sizes.
    """

    data: tuple[str, ...]
    """Folder or address of a finished dataset: one with a manifest.json.
    Several form a mixture, each NAME=DIR:WEIGHT; each step draws from one of them, chosen by weight.
    The default name is that of the corpus, the default weight is 1."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes, lengths and learning rates. tiny: every part of the paper in 1.3 million weights, minutes on two cores.
    The others: the paper's visual encoder and Causal Former with a LLaMA of 1.3, 7 or 13 billion weights.
    With --init, the sizes are those of that model."""
    tokenizer: str | None = None
    """A sentencepiece tokenizer.model, or the folder that contains it.
    None: the tokenizer of --init or --language-weights. The recipe tiny trains one on the texts of the dataset."""
    init: str | None = None
    """Model folder to start from: OUT/model of a run, or the output of emu convert.
    None: initialise the weights from the seed."""
    vision_weights: str | None = None
    """EVA-CLIP weights for the visual encoder; not with --init.
    A pretrained tag of open_clip such as laion400m_s11b_b41k, or a checkpoint file of open_clip or EVA."""
    language_weights: str | None = None
    """LLaMA weights for the language model; not with --init.
    A folder in Hugging Face's format with the sizes of the recipe. Its tokenizer.model is used too."""
    train: TrainConfig = field(default_factory=lambda: RECIPES["tiny"]().train)
    sequence: SequenceConfig = field(default_factory=lambda: RECIPES["tiny"]().sequence)
    objective: ObjectiveConfig = field(default_factory=lambda: RECIPES["tiny"]().model.objective)

    def __post_init__(self) -> None:
        if (
            self.data is not tyro.MISSING
        ):  # as in the defaults of a recipe, which a command line completes
            super().__post_init__()


def train_emu(options: TrainEmu) -> str:
    """Train, or resume a run; returns the summary for a terminal."""
    if options.plan:
        model, data = RECIPES[options.recipe]().model, options.data or PAPER_CORPORA
        return options.forecast(model, options.train, options.sequence, data)
    return run_training(lambda: plan_of(options), options.workers, options.compare)


def plan_of(options: TrainEmu) -> TrainPlan:
    """The run that the options describe; trains the tokenizer of a tiny run if none is given."""
    from emu.tokenizer import EmuTokenizer
    from emu.train.loop import TrainPlan
    from emu.train.start import check_start
    from emu.weights.layout import load_config

    recipe = RECIPES[options.recipe]()
    out, data = folder_path(options.out), corpora_of(options.data)
    init = None if options.init is None else folder_path(options.init)
    llama = None if options.language_weights is None else folder_path(options.language_weights)
    model = recipe.model if init is None else load_config(init)
    if llama is not None:
        from emu.weights.llama import llama_sizes

        llama_sizes(llama)  # raises before its tokenizer is looked for
    check_start(init, options.vision_weights, llama)
    tokenizer = _tokenizer(options, recipe, data, Path(out), init or llama)
    fitted = with_vocabulary(recipe, EmuTokenizer.load(tokenizer).num_pieces)
    if options.recipe != "tiny" and fitted.model != recipe.model:
        raise ValueError(
            f"tokenizer={tokenizer}: has {fitted.model.language.vocab_size} pieces, recipe "
            f"{recipe.name} needs {recipe.model.language.vocab_size}"
        )
    model = fitted.model if init is None else model
    if llama is not None:
        from emu.weights.llama import with_llama

        model = with_llama(model, llama)
    return TrainPlan(
        data=data,
        out=out,
        tokenizer=tokenizer,
        model=replace(model, objective=options.objective),
        sequence=options.sequence,
        train=options.config(options.train),
        init=init,
        vision_weights=weights_path(options.vision_weights),
        language_weights=llama,
        use_features=options.use_features,
        resume=options.resume,
        checkpoints=options.checkpoint_address(),
    )


def recipe_defaults(arguments: Sequence[str]) -> TrainEmu:
    """The options before the command line changes them: --train.*, --sequence.* and --objective.* of its --recipe."""
    recipe, is_plan = named_recipe(arguments, RECIPES), "--plan" in arguments
    return TrainEmu(
        data=() if is_plan else tyro.MISSING,
        out="." if is_plan else tyro.MISSING,
        train=recipe.train,
        sequence=recipe.sequence,
        objective=recipe.model.objective,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(
        TrainEmu,
        train_emu,
        arguments,
        default=recipe_defaults,
        log_level="warning",  # a progress bar shows the steps
    )


PAPER_CORPORA = ("laion", "laion_coco", "mmc4", "webvid", "yt_storyboard")


def _tokenizer(
    options: TrainEmu, recipe: Recipe, data: tuple[Corpus, ...], out: Path, start: str | None
) -> str:
    if options.tokenizer is not None:
        return folder_path(options.tokenizer)
    if start is not None:
        return f"{start}/tokenizer.model"
    if options.recipe != "tiny":
        raise ValueError(
            f"tokenizer=None: recipe {recipe.name} needs LLaMA's tokenizer.model; give --tokenizer PATH, "
            "or --language-weights FOLDER with one"
        )
    from emu.train.start import learned_tokenizer

    path = out / "tokenizer.model"
    learned_tokenizer([corpus.address for corpus in data], path, recipe.model.language.vocab_size)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
