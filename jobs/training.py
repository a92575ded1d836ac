"""What the jobs of training do alike: run a plan with or without Ray, show its progress, sum it up."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from emu.recipes import Recipe
from jobs.cli import JobStopped, checked_options, failing
from jobs.paths import folder_path, job_path
from jobs.progress import say, say_importing

if TYPE_CHECKING:
    from emu.data.mixture import Corpus
    from emu.train.loop import Summary
    from emu.train.plan import Plan


@dataclass(frozen=True)
class Workers:
    """Where a run is trained: the options of the jobs."""

    num_workers: int
    num_processes: int = 1
    num_cpus: int | None = None
    max_failures: int = 3
    min_workers: int | None = None


def check_processes(num_processes: int, num_workers: int) -> None:
    """Raise ValueError for processes beside workers of Ray, which would be ignored."""
    if num_processes > 1 and num_workers > 0:
        raise ValueError(
            f"num_processes is {num_processes} and num_workers {num_workers}; give --num-workers 0 to train in "
            "processes without Ray, or leave out --num-processes"
        )


def run_training(
    make_plan: Callable[[], Plan], workers: Workers, compare: Sequence[str] = ()
) -> str:
    """Train, or resume a run, and write its report beside the runs to `compare`; returns the summary for a terminal.

    What `make_plan` and the checks of the plan raise are errors of the options.
    """
    say_importing("torch")
    import torch

    from emu.train.loop import check_plan, finished_summary, train
    from emu.train.processes import run_in_processes
    from emu.train.report import logged_run, write_report
    from emu.train.step import TrainingError

    others = [Path(folder_path(path)) for path in compare]

    def told(summary: Summary, plan: Plan) -> str:
        text = summary_text(summary, plan, time.monotonic() - began)
        return f"{text}\nreport     {write_report(Path(plan.out), others)}"

    began = time.monotonic()
    say("reading the dataset and the weights' headers")
    with checked_options():
        for other in others:
            logged_run(other)
        plan = make_plan()
        if finished := finished_summary(plan):
            print(f"the run in {plan.out} has finished before; nothing is left to do")
            return told(finished, plan)
        check_plan(plan)
        Path(plan.out).mkdir(parents=True, exist_ok=True)
    use_gpu = torch.cuda.is_available()
    with _stopping(), progress_bar(plan), failing(TrainingError, ValueError):
        if workers.num_workers == 0:
            device = torch.device("cuda" if use_gpu else "cpu")
            summary = run_in_processes(
                workers.num_processes, lambda ranks, tell: train(plan, ranks, device)
            )
        else:
            from emu.train.ray_trainer import train_on_ray
            from jobs.cluster import ray_session

            num_cpus = workers.num_cpus or max(workers.num_workers, os.cpu_count() or 1)
            say("starting Ray")
            with ray_session(num_cpus):
                summary = train_on_ray(
                    plan, workers.num_workers, use_gpu, workers.max_failures, workers.min_workers
                )
    return told(summary, plan)


@contextmanager
def _stopping() -> Iterator[None]:
    """Turns `Stopped` inside the block into the end of the job."""
    from emu.train.stopping import Stopped

    try:
        yield
    except Stopped as stopped:
        raise JobStopped(stopped.signal) from stopped


def named_recipe(arguments: Sequence[str], recipes: Mapping[str, Callable[[], Recipe]]) -> Recipe:
    """The recipe that a command line names, `tiny` for none and for a name that the parser will refuse."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--recipe", default="tiny")
    name = peek.parse_known_args(arguments)[0].recipe
    return recipes.get(name, recipes["tiny"])()


def corpora_of(words: tuple[str, ...]) -> tuple[Corpus, ...]:
    """The corpora of `--data`, their folders made absolute."""
    from emu.data.mixture import parse_corpus

    if not words:
        raise ValueError(
            "data=(): no dataset; give --data DIR, or NAME=DIR:WEIGHT for each of several"
        )
    corpora = [parse_corpus(word) for word in words]
    return tuple(replace(corpus, address=job_path(corpus.address)) for corpus in corpora)


@contextmanager
def progress_bar(plan: Plan, poll_s: float = 0.5) -> Iterator[None]:
    """A progress bar over the steps, read from the metrics file that the first worker writes."""
    from tqdm import tqdm

    from emu.train.run_folder import read_metrics

    stop = Event()

    def follow() -> None:
        interval_s = 0.5 if sys.stderr.isatty() else 10.0  # fewer lines in a log file
        with tqdm(total=plan.train.steps, unit="step", mininterval=interval_s) as bar:
            bar.set_description("starting")
            while True:
                is_last = stop.wait(poll_s)
                rows = read_metrics(Path(plan.out))
                if rows:
                    row = rows[-1]
                    bar.set_description("training", refresh=False)
                    bar.set_postfix_str(progress_text(rows), refresh=False)
                    bar.update(row["step"] - bar.n)
                if is_last:
                    return

    follower = Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def progress_text(rows: Sequence[Mapping[str, float]]) -> str:
    """What a progress bar says of a run: losses by kind and corpus, work per second, MFU, the wait for data."""
    row = rows[-1]
    text = f"text {row['text_loss']:.3f} " if row["positions"] else ""
    words = [f"{text}visual {row['visual_loss']:.3f}"]
    last: dict[str, float] = {}
    for earlier in rows[-50:]:  # a line has the corpora of its own steps
        last |= {name: value for name, value in earlier.items() if "/" in name}
    for name in sorted(n.removeprefix("steps/") for n in last if n.startswith("steps/")):
        words.append(f"{name} {last[f'text_loss/{name}']:.2f}/{last[f'visual_loss/{name}']:.2f}")
    words += [
        f"{row[f'{n}_per_s']:.3g} {n}/s" for n in ("samples", "images", "positions") if row[n]
    ]
    words += [f"MFU {row['mfu']:.0%}"] if "mfu" in row else []
    words += [f"data wait {row['data_wait']:.0%}"] if "data_wait" in row else []
    skipped = {"bad": row.get("bad_samples", 0), "skipped": row.get("skipped_steps", 0)}
    return ", ".join(words + [f"{count:.0f} {name}" for name, count in skipped.items() if count])


def summary_text(summary: Summary, plan: Plan, seconds: float) -> str:
    """What a run has done, for a terminal."""
    from emu.train.run_folder import CURVES, METRICS, read_metrics

    first = read_metrics(Path(plan.out))[0]
    is_text = summary.positions > 0  # else the run has trained a visual decoder
    variance = f" (variance of its targets {summary.target_variance:.4f})" if is_text else ""
    lines = [
        "",
        f"steps      {summary.steps:,} ({summary.samples:,} samples, {summary.images:,} images, "
        f"{summary.positions:,} positions)",
        *[
            f"text       loss {first['text_loss']:.4f} at the start, {summary.text_loss:.4f} at the end"
        ][: int(is_text)],
        f"visual     loss {first['visual_loss']:.4f} at the start, {summary.visual_loss:.4f} at the end{variance}",
        *(f"ALARM      {alarm}" for alarm in summary.alarms),
        f"model      {summary.model}",
        f"metrics    {plan.out}/{METRICS}, {plan.out}/{CURVES}",
        *_by_corpus(Path(plan.out)),
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def _by_corpus(out: Path) -> list[str]:
    """A line per corpus of a mixture, and one per corpus with held-out samples: its last logged losses."""
    from emu.train.run_folder import read_metrics

    last: dict[str, float] = {}
    for row in read_metrics(out):
        last |= {name: value for name, value in row.items() if "/" in name}

    def names(kind: str) -> list[str]:
        return sorted(n.removeprefix(kind) for n in last if n.startswith(kind))

    lines = [
        f"corpus     {name}: {last[f'steps/{name}']:,} steps, text loss {last[f'text_loss/{name}']:.4f}, "
        f"visual loss {last[f'visual_loss/{name}']:.4f}"
        for name in names("steps/")
    ]
    kinds = ("validation_text_loss/", "validation_visual_loss/")
    return lines + [
        f"validation {name}: text loss {last[kinds[0] + name]:.4f}, visual loss {last[kinds[1] + name]:.4f}"
        for name in names(kinds[0])
    ]
