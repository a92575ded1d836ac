#!/usr/bin/env python3
"""Trains Emu on a published dataset with Ray Train, or in this process without Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from emu.config import Count, ObjectiveConfig, Positive, SequenceConfig
from emu.recipes import RECIPES, Parallel, Recipe, TrainConfig, with_vocabulary
from jobs.cli import JobError, checked_options, run_job
from jobs.paths import folder_path, job_path, weights_path
from jobs.progress import say
from jobs.training import Workers, corpora_of, named_recipe, run_training, train_config
from schemas.validation import Checked

if TYPE_CHECKING:
    from emu.data.mixture import Corpus
    from emu.train.loop import TrainPlan


@dataclass(frozen=True)
class TrainEmu(Checked):
    """Trains Emu: text by cross-entropy, images by regression of the next visual embedding.

    For example, on a dataset that one of the build jobs wrote (here in the folder mmc4):
        emu train --data mmc4 --out run --steps 200

    Start from the paper's pretrained parts, or from an existing model:
        emu train --recipe emu_llama_7b --vision-weights laion400m_s11b_b41k \\
            --language-weights llama-7b --data mmc4 --out run7b
        emu train --init run/model --data more --out run2

    Train on a mixture, three steps of pairs for one of documents:
        emu train --data laion=pairs:3 mmc4=documents:1 --out run3

    Show the values of a recipe:
        emu train --recipe emu_14b --help

    Use 8 GPUs of a cluster:
        ray job submit --working-dir . -- python jobs/train_emu.py --data /shared/mmc4 \\
            --out /shared/run --num-workers 8

    OUT/model is the trained model; OUT/metrics.jsonl and OUT/curves.svg show the progress of the run. A run that
    was stopped or killed resumes from OUT/checkpoints when it is started again with the same options. Every value
    of the recipe can be changed under --train.*, --sequence.* and --objective.*; their defaults are the recipe's.
    Lengths count positions: tokens, and 34 per image at the paper's sizes.
    """

    data: tuple[str, ...]
    """Folder or address of a finished dataset: one with a manifest.json.
    Several are a mixture, each NAME=DIR:WEIGHT: a step draws from one of them, by weight.
    Without a name a dataset has that of its corpus, without a weight 1."""
    out: str
    """Folder of the run. With workers on several nodes, one that all of them see."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes, lengths and learning rates. tiny: every part of the paper in 1.3 million weights, minutes on two cores.
    The others: the paper's visual encoder and Causal Former with a LLaMA of 1.3, 7 or 13 billion weights.
    With --init, the sizes are those of that model."""
    steps: Count | None = None
    """Optimizer steps in total. None: the recipe's (--train.steps)."""
    batch_size: Count | None = None
    """Sequences per micro-batch and worker, for every corpus. None: the recipe's (--train.batch-size)."""
    seed: int | None = None
    """Seed of initial weights, sample order and dropout masks. None: the recipe's (--train.seed)."""
    plan: bool = False
    """Print what the run needs, and end: memory per GPU, operations per step, days; exit code 1 if it does not fit.
    --data then gives names and weights of corpora (the paper's if it is absent), and --out is not needed."""
    gpu_memory_gb: Positive = 80.0
    """Memory of a GPU, for --plan."""
    gpu_tflops: Positive = 989.5
    """Peak of a GPU in bfloat16, for --plan; the default is an H100."""
    num_workers: Annotated[int, Field(ge=0, description="0 trains without Ray")] = 2
    """Workers of Ray Train, each with a core or a GPU. 0 trains in this process, without Ray."""
    min_workers: Count | None = None
    """Train on as few workers of Ray as this while others are missing, and on more when they come.
    The batches stay those of --num-workers. None: wait for all."""
    parallel: Parallel | None = None
    """How several workers share the model: full copies (ddp), or sharded weights (fsdp, hsdp).
    None: the recipe's (--train.parallel), which is fsdp on GPUs and ddp on CPUs."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """With --num-workers 0: processes of this machine that share its cores, without Ray."""
    tokenizer: str | None = None
    """A sentencepiece tokenizer.model, or the folder that holds one.
    None: that of --init or --language-weights; for tiny, one trained on the texts of the dataset."""
    init: str | None = None
    """A model folder to start from: OUT/model of a run, or what emu convert wrote.
    None initialises the weights from the seed."""
    vision_weights: str | None = None
    """EVA-CLIP weights for the visual encoder; not with --init.
    A pretrained tag of open_clip such as laion400m_s11b_b41k, or a checkpoint file of open_clip or EVA."""
    language_weights: str | None = None
    """LLaMA weights for the language model; not with --init.
    A folder in Hugging Face's format, with the sizes of the recipe; its tokenizer.model is used too."""
    use_features: bool = False
    """Train on features that emu features computed; the visual encoder then stays frozen.
    Features of an encoder with other weights are refused."""
    checkpoints: str | None = None
    """Folder or fsspec address of the checkpoints, such as s3://bucket/run; one for each run. None: OUT/checkpoints."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume the run in OUT if there is one, otherwise start one. must, never: an error if that is not so."""
    num_cpus: Count | None = None
    """Cores for a Ray that the job starts itself. None: all, but at least one per worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Failures of workers after which the run ends with an error."""
    compare: tuple[str, ...] = ()
    """Folders of other runs that OUT/report.html shows beside this one, up to five."""
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
        return _forecast(options)
    workers = Workers(
        options.num_workers,
        options.num_processes,
        options.num_cpus,
        options.max_failures,
        options.min_workers,
    )
    return run_training(lambda: plan_of(options), workers, options.compare)


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
        train=_train_config(options),
        init=init,
        vision_weights=weights_path(options.vision_weights),
        language_weights=llama,
        use_features=options.use_features,
        resume=options.resume,
        checkpoints=None if options.checkpoints is None else job_path(options.checkpoints),
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


def _train_config(options: TrainEmu) -> TrainConfig:
    return train_config(
        options.train,
        options.steps,
        options.batch_size,
        options.seed,
        options.use_features,
        options.parallel,
    )


PAPER_CORPORA = ("laion", "laion_coco", "mmc4", "webvid", "yt_storyboard")


def _forecast(options: TrainEmu) -> str:
    """What the run would need; raises JobError if it does not fit, with what would."""
    from emu.data.mixture import parse_corpus
    from emu.train.flops import step_cost
    from emu.train.forecast import Cluster, alternatives, described, forecast

    with checked_options():
        config, model = _train_config(options), RECIPES[options.recipe]().model
        parsed = [parse_corpus(word) for word in options.data or PAPER_CORPORA]
        corpora = [(corpus.name or Path(corpus.address).name, corpus.weight) for corpus in parsed]
        cluster = Cluster(max(1, options.num_workers), options.gpu_memory_gb, options.gpu_tflops)
    say("measuring the parts of the model")
    is_sharded = config.parallel != "ddp" and cluster.num_workers > 1  # auto: fsdp on GPUs
    found = forecast(
        model, config, options.sequence, cluster, corpora, is_sharded, options.use_features
    )
    cost = step_cost(
        model, config.freeze_vision, options.use_features, config.recompute_activations
    )
    text = described(found, config, cluster, cost)
    if found.fits:
        return text
    others = list(alternatives(model, config, options.sequence, cluster, corpora, is_sharded))
    raise JobError(
        f"the run does not fit: {found.memory.peak / 1e9:.1f} GB per GPU, the limit is {found.limit_gb:.1f} GB; "
        f"what would: {'; '.join(others) or 'no change of options'}",
        summary=text,
    )


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
