#!/usr/bin/env python3
"""Trains Emu on a published dataset with Ray Train, or in this process without Ray."""

import argparse
import inspect
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from emu.config import ObjectiveConfig
from emu.data.dataset import DatasetError
from emu.data.sequence import SequenceConfig, SequenceError
from emu.recipes import RECIPES, Recipe, TrainConfig, with_vocabulary
from emu.tokenizer import EmuTokenizer
from emu.train.loop import Summary, TrainPlan, check_resume, open_stream, train
from emu.train.run_folder import CURVES, METRICS, CheckpointError, read_metrics
from emu.train.start import check_init, check_start, learned_tokenizer, start_tower
from emu.train.step import Ranks, TrainingError
from emu.weights.layout import load_config
from jobs.cli import BAD_VALUE, COMPLETE, FAILED, interrupted, report_error, start_logging
from jobs.cluster import ray_session
from jobs.paths import folder_path, job_path, weights_path


@dataclass(frozen=True)
class TrainEmu:
    """Trains Emu: text by cross-entropy, images by regression to their next visual embedding.

    A first try, on a dataset that one of the build jobs wrote (here in the folder mmc4):
        jobs/train_emu.py --data mmc4 --out run --steps 200

    Start from the paper's parts, or from a model that is there:
        jobs/train_emu.py --recipe emu_llama_7b --vision-weights laion400m_s11b_b41k \\
            --language-weights llama-7b --data mmc4 --out run7b
        jobs/train_emu.py --init run/model --data more --out run2

    Look at a recipe's values:
        jobs/train_emu.py --recipe emu_14b --help

    Use 8 GPUs of a cluster:
        ray job submit --working-dir . -- python jobs/train_emu.py --data /shared/mmc4 \\
            --out /shared/run --num-workers 8

    OUT/model is the trained model, OUT/metrics.jsonl and OUT/curves.svg show how it came about. A run that
    was stopped, killed or lost goes on from OUT/checkpoints when it is started again with the same options.
    Every value of the recipe can be changed under --train.*, --sequence.* and --objective.*; their defaults
    are the recipe's. Lengths count positions: tokens, and 34 for each image of the paper's sizes.
    """

    data: str
    """Folder or address of a finished dataset: one with a manifest.json."""
    out: str
    """Folder of the run. With workers on several nodes, one that all of them see."""
    recipe: Literal["tiny", "emu_llama_1b", "emu_llama_7b", "emu_14b"] = "tiny"
    """Sizes, lengths and rates. tiny: every part of the paper in 1.2 million weights, minutes on two cores.
    The others: the paper's visual encoder and Causal Former around a LLaMA of 1.3, 7 or 13 billion weights.
    With --init, the sizes are those of the model there."""
    steps: int | None = None
    """Optimizer steps in all. None: the recipe's (--train.steps)."""
    batch_size: int | None = None
    """Sequences of one micro-batch on one worker, whatever the corpus. None: the recipe's (--train.batch-size)."""
    seed: int | None = None
    """Of initial weights, order of samples and dropout. None: the recipe's (--train.seed)."""
    num_workers: int = 2
    """Workers of Ray Train, each with a core or a GPU. 0 trains in this process, without Ray."""
    tokenizer: str | None = None
    """A sentencepiece tokenizer.model, or the folder that holds one.
    None: that of --init or --language-weights, or for tiny one learned from the dataset's texts."""
    init: str | None = None
    """A model folder to start from: OUT/model of a run, or what jobs/convert_checkpoint.py wrote.
    None draws the weights from the seed."""
    vision_weights: str | None = None
    """EVA-CLIP for the visual encoder, instead of drawn weights; not with --init, which has its own.
    A pretrained tag of open_clip such as laion400m_s11b_b41k, or a checkpoint file of open_clip or EVA."""
    language_weights: str | None = None
    """LLaMA for the language model, instead of drawn weights; not with --init, which has its own.
    A folder in Hugging Face's form, with the sizes of the recipe; its tokenizer.model is taken too."""
    use_features: bool = False
    """Train on features that jobs/precompute_features.py computed; the visual encoder then stays frozen.
    Features of any other weights than this encoder's are refused."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: go on where OUT holds this run, else begin. must, never: an error where that is not so."""
    num_cpus: int | None = None
    """Cores for a Ray that the job starts itself. None takes all, or as many as there are workers."""
    max_failures: int = 3
    """Lost workers after which the run is given up."""
    train: TrainConfig = field(default_factory=lambda: RECIPES["tiny"]().train)
    sequence: SequenceConfig = field(default_factory=lambda: RECIPES["tiny"]().sequence)
    objective: ObjectiveConfig = field(default_factory=lambda: RECIPES["tiny"]().model.objective)

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: 0 (no Ray) or more")
        if self.max_failures < 0:
            raise ValueError(f"max_failures={self.max_failures}: 0 or more")


def plan_of(options: TrainEmu) -> TrainPlan:
    """The run that the options describe; learns the tokenizer of a tiny run where none is given."""
    recipe = RECIPES[options.recipe]()
    out, data = folder_path(options.out), job_path(options.data)
    init = None if options.init is None else folder_path(options.init)
    llama = None if options.language_weights is None else folder_path(options.language_weights)
    started = None if init is None else load_config(init)
    if llama is not None:
        from emu.weights.llama import llama_sizes

        llama_sizes(llama)  # that there is one, before its tokenizer is looked for
    check_start(init, options.vision_weights, llama)
    tokenizer = _tokenizer(options, recipe, data, Path(out), init or llama)
    fitted = with_vocabulary(recipe, EmuTokenizer.load(tokenizer).num_pieces)
    if options.recipe != "tiny" and fitted.model != recipe.model:
        raise ValueError(
            f"tokenizer={tokenizer}: has {fitted.model.language.vocab_size} pieces, recipe "
            f"{recipe.name} needs {recipe.model.language.vocab_size}"
        )
    model = fitted.model if started is None else started
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
    )


def check_plan(plan: TrainPlan) -> None:
    """Raise here, before any worker starts, for data, features, lengths or an output that do not fit."""
    check_resume(plan)
    if plan.init is not None:
        check_init(plan.model, plan.init)
    if plan.language_weights is not None:
        from emu.weights.llama import check_llama

        check_llama(plan.model, plan.language_weights)
    tower = None
    if plan.use_features or plan.vision_weights is not None:
        tower = start_tower(plan.model, plan.train.seed, plan.init, plan.vision_weights)
    alone = replace(plan, train=replace(plan.train, num_threads=0))
    open_stream(alone, tower, Ranks()).next_step()


def run(options: TrainEmu, plan: TrainPlan) -> Summary:
    """Train on Ray, or in this process for 0 workers."""
    use_gpu = torch.cuda.is_available()
    if options.num_workers == 0:
        return train(plan, device=torch.device("cuda" if use_gpu else "cpu"))
    from emu.train.ray_trainer import train_on_ray

    num_cpus = options.num_cpus or max(options.num_workers, os.cpu_count() or 1)
    with ray_session(num_cpus):
        return train_on_ray(plan, options.num_workers, use_gpu, options.max_failures)


@contextmanager
def progress(plan: TrainPlan, poll_s: float = 0.5) -> Iterator[None]:
    """A progress bar over the steps, read from the metrics that the first worker writes."""
    stop = Event()

    def follow() -> None:
        interval_s = 0.5 if sys.stderr.isatty() else 10.0  # a log wants fewer lines
        with tqdm(total=plan.train.steps, unit="step", mininterval=interval_s) as bar:
            bar.set_description("starting")
            while True:
                is_last_look = stop.wait(poll_s)
                rows = read_metrics(Path(plan.out))
                if rows:
                    row = rows[-1]
                    bar.set_description("training", refresh=False)
                    bar.set_postfix_str(
                        f"text {row['text_loss']:.3f} visual {row['visual_loss']:.3f} "
                        f"{row['samples_per_s']:.1f} samples/s",
                        refresh=False,
                    )
                    bar.update(row["step"] - bar.n)
                if is_last_look:
                    return

    follower = Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def summary_text(summary: Summary, plan: TrainPlan, seconds: float) -> str:
    """What the run did, in words for a terminal."""
    first = read_metrics(Path(plan.out))[0]
    lines = [
        "",
        f"steps      {summary.steps:,} ({summary.samples:,} samples, {summary.images:,} images, "
        f"{summary.positions:,} positions)",
        f"text       {first['text_loss']:.4f} at the start, {summary.text_loss:.4f} at the end",
        f"visual     {first['visual_loss']:.4f} at the start, {summary.visual_loss:.4f} at the end "
        f"(variance of its targets {summary.target_variance:.4f})",
        *(f"ALARM      {alarm}" for alarm in summary.alarms),
        f"model      {summary.model}",
        f"metrics    {plan.out}/{METRICS}, {plan.out}/{CURVES}",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the job; 0 if the run is complete, 1 if it is not, 2 if an option or the data is wrong, 130 on Ctrl-C."""
    start_logging(logging.WARNING)
    began = time.monotonic()
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        plan = plan_of(options)
        check_plan(plan)
        Path(plan.out).mkdir(parents=True, exist_ok=True)
    except KeyboardInterrupt:
        return interrupted()
    except (ValueError, OSError) as error:
        return report_error(error, BAD_VALUE)
    try:
        with progress(plan):
            summary = run(options, plan)
    except KeyboardInterrupt:
        return interrupted()
    except (DatasetError, SequenceError, CheckpointError, TrainingError, OSError) as error:
        return report_error(error, FAILED)
    print(summary_text(summary, plan, time.monotonic() - began))
    return COMPLETE


def parse(arguments: list[str]) -> TrainEmu:
    """The options, with the chosen recipe's values as defaults of --train.* and --sequence.*."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--recipe", default="tiny")
    name = peek.parse_known_args(arguments)[0].recipe
    recipe = RECIPES.get(
        name, RECIPES["tiny"]
    )()  # tyro refuses an unknown name, with the known ones

    default = TrainEmu(
        data=tyro.MISSING,
        out=tyro.MISSING,
        recipe="tiny",
        train=recipe.train,
        sequence=recipe.sequence,
        objective=recipe.model.objective,
    )
    return tyro.cli(
        TrainEmu,
        args=arguments,
        default=default,
        description=inspect.getdoc(TrainEmu),
        prog="jobs/train_emu.py",
    )


def _train_config(options: TrainEmu) -> TrainConfig:
    changes = {
        name: value
        for name in ("steps", "batch_size", "seed")
        if (value := getattr(options, name)) is not None
    }
    if options.batch_size is not None:
        changes["corpus_batch_size"] = {}
    if options.use_features:
        changes["freeze_vision"] = True
    return replace(options.train, **changes)


def _tokenizer(options: TrainEmu, recipe: Recipe, data: str, out: Path, start: str | None) -> str:
    if options.tokenizer is not None:
        return folder_path(options.tokenizer)
    if start is not None:
        return f"{start}/tokenizer.model"
    if options.recipe != "tiny":
        raise ValueError(
            f"tokenizer=None: recipe {recipe.name} needs LLaMA's tokenizer.model; give --tokenizer PATH, "
            "or --language-weights FOLDER with one"
        )
    path = out / "tokenizer.model"
    learned_tokenizer(data, path, recipe.model.language.vocab_size)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
