#!/usr/bin/env python3
"""The pipeline end to end on a synthetic world: documents, shards, features, training, a served model, its exam."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from jobs.cli import in_words, interrupted, run_job
from jobs.demo_jobs import DemoError, Jobs, build_portions, dataset_of
from pipelines.miniworld import WORLDS
from schemas.validation import Checked

if TYPE_CHECKING:
    from pipelines.miniworld.mmc4 import MiniworldSummary
    from schemas.manifest import Manifest

RULE = "─" * 78
NUM_SCENES = 64  # of the exam
FIXED_MINUTES = 1.5  # what does not depend on the lengths of the trainings, on two cores
MINUTES = 6.0
STEPS = {"visual": 950, "features": 40, "emu": 1200, "decoder": 1200}
"""Optimizer steps at MINUTES."""
MAX_PAIRS = 200_000
MAX_PROMPTED = 8_000
"""Images for the visual decoder: the conditions of each take time before its first step."""
NUM_CLIENTS = 8  # that ask the server at the same time
NUM_PROCESSES = 2
"""Of each large training: one per core of the machine that the demo is for."""
PAIRS = {"captions": "visual", "questions": "emu"}
"""Which training the pairs are for."""


@dataclass(frozen=True)
class Demo(Checked):
    """Builds a synthetic world, datasets and a model, serves the model and evaluates it on new scenes.

    For example:
        emu demo --out demo_out
        emu demo --out demo_out_30 --minutes 30

    Runs the jobs one after another on a local Ray, as a user would, and checks the counts of each output.
    The trained model is OUT/run/model; the page with the results is OUT/replies.html. Exit code 0 means that every
    step ran and every count was as expected.
    """

    out: Path = Path("demo_out")
    """Folder for all outputs. Finished datasets and trainings in it are not repeated, except the visual pretraining."""
    minutes: Annotated[float, Field(ge=2, le=1440)] = MINUTES
    """Approximate duration in minutes on two cores, without installation, 2 to 1440.
    The trainings get the time that the other steps leave; a longer run gives a better model.
    6 minutes are enough for captions, answers, and the position and colour of generated images."""
    num_documents: Annotated[int, Field(ge=3, description="they are in three files")] = 240
    """Documents of the synthetic world, at least 3 (they are written to three files)."""
    num_scenes: Annotated[int, Field(ge=1, le=1000)] = NUM_SCENES
    """New scenes on which the served model is evaluated, 1 to 1000."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 7
    """Seed of the world, the trainings and the evaluation."""

    def steps(self, name: str) -> int:
        """Optimizer steps of a training, in proportion to the time that is left for trainings."""
        scale = max(0.02, (self.minutes - FIXED_MINUTES) / (MINUTES - FIXED_MINUTES))
        return max(2, round(STEPS[name] * (1 if name == "features" else scale)))

    def num_pairs(self, name: str) -> int:
        """Image-text pairs for a training: each is seen about twice."""
        return min(MAX_PAIRS, max(500, self.steps(name) * 32 // 2))


@dataclass
class Report:
    """Measurements for the summary at the end."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        """A step of the pipeline, with its heading and its duration."""
        print(f"\n{RULE}\n{len(self.seconds) + 1}. {title}\n{RULE}", flush=True)
        start = time.monotonic()
        self.seconds[title] = 0.0
        yield
        self.seconds[title] = time.monotonic() - start
        print(f"   {self.seconds[title]:.1f} s", flush=True)

    def say(self, name: str, value: str) -> None:
        """A line of the summary, also printed at once."""
        self.lines.append((name, value))
        print(f"   {name}: {value}", flush=True)


def run_demo(options: Demo) -> int:
    """Runs all steps; returns the exit code: 0 if all of them succeeded, 1 if not, 130 on Ctrl-C."""
    import ray

    from jobs.cluster import ray_session
    from jobs.demo_client import ClientError
    from jobs.progress import say

    report, out = Report(), options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        jobs = Jobs()
        with ray_session(num_cpus=max(4, os.cpu_count() or 1)):
            say("")  # the jobs say what they do
            # Ray has put its token into the environment
            jobs.environment = dict(os.environ, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
            manifest = _documents(options, out, report, jobs)
            _visual(options, out, report, jobs)
            _features(manifest, out, report, jobs)
            _train(options, out, report, jobs)
            _decoder(options, out, report, jobs)
            _exam(options, out, report, jobs)
    except KeyboardInterrupt:
        return interrupted()
    except (ClientError, DemoError, OSError, ValueError) as error:
        print(f"\nThe demo stopped: {in_words(error)}", file=sys.stderr)
        return 1
    _summary(report, out)
    return 0


def _documents(options: Demo, out: Path, report: Report, jobs: Jobs) -> Manifest:
    from pipelines.miniworld.config import MiniworldConfig
    from pipelines.miniworld.mmc4 import write_mmc4
    from pipelines.miniworld.server import ImageServer

    with report.part("Web documents with links: fetch, clean, write shards"):
        config = MiniworldConfig(
            seed=options.seed,
            num_documents=options.num_documents,
            images_per_document=(1, 3),
            sentences_per_document=(3, 4),
            max_things=1,
        )
        pairs = {name: jobs.start("build_pairs", *_pairs(options, out, name)) for name in PAIRS}
        summary = write_mmc4(config, out / "world")
        with ImageServer(out / "world" / "images", retry_after_s=0) as server:
            jobs.run(
                "build_mmc4",
                f"--documents={out / 'world' / 'documents'}/*",
                f"--out={out / 'mmc4'}",
                "--samples-per-shard=150",
                f"--fetch.allow-host={server.allow_host}",
            )
        manifest = _manifest(out / "mmc4")
        _check_dataset(manifest, summary, out / "mmc4")
        for name, job in pairs.items():
            jobs.finish("build_pairs", job)
            _expect_pairs(options, out, name)
        dropped = sum(manifest.links.dropped.values())
        report.say(
            "documents",
            f"{manifest.num_samples} documents, {manifest.num_images} images in "
            f"{len(manifest.shards)} shards; {dropped} links dropped, each with its reason",
        )
    with report.part("A small portion of each other corpus"):
        names = sorted(set(WORLDS) - {"mmc4"})
        jobs.join("a build", jobs.fork(build_portions, out / "corpora", names, options.seed))
        for name in names:
            found = _manifest(dataset_of(out / "corpora", name))
            report.say(name, f"{found.num_samples} samples with {found.num_images} images")
    return manifest


def _check_dataset(manifest: Manifest, summary: MiniworldSummary, dataset: Path) -> None:
    import pyarrow.parquet as pq

    rows = sum(pq.read_metadata(file).num_rows for file in sorted(dataset.glob("index/*")))
    _expect("records", manifest.records.total, summary.num_records)
    _expect("documents kept", manifest.records.kept, summary.num_documents_kept)
    _expect("links", manifest.links.total, summary.num_links)
    _expect("images", manifest.num_images, summary.num_images_kept)
    _expect("rows of the index", rows, manifest.num_samples)


def _pairs(options: Demo, out: Path, name: str) -> tuple[str, ...]:
    """The options of `build pairs` for the pairs of captions, or of questions."""
    asks = name == "questions"
    return (
        f"--out={out / name}",
        f"--num-pairs={options.num_pairs(PAIRS[name])}",
        f"--question-share={0.7 if asks else 0}",
        f"--seed={options.seed + asks}",
    )


def _expect_pairs(options: Demo, out: Path, name: str) -> None:
    num_pairs = options.num_pairs(PAIRS[name])
    _expect(f"pairs of {name}", _manifest(out / name).num_samples, num_pairs)


def _visual(options: Demo, out: Path, report: Report, jobs: Jobs) -> None:
    with report.part("Pretrain the visual encoder and the Causal Former from captions"):
        jobs.train(
            "train_visual",
            f"--num-processes={NUM_PROCESSES}",
            f"--data={out / 'captions'}",
            f"--tokenizer-data={out / 'questions'}",
            f"--out={out / 'run_visual'}",
            f"--steps={options.steps('visual')}",
            f"--seed={options.seed}",
        )
        rows = _rows(out / "run_visual" / "model", options.steps("visual"))
        report.say("caption tokens predicted", f"{rows[-1]['former_recall']:.1%}")


def _features(manifest: Manifest, out: Path, report: Report, jobs: Jobs) -> None:
    import pyarrow as pa

    with report.part("Precompute features of the documents' images"):
        model = out / "run_visual" / "model"
        jobs.train(
            "precompute_features", f"--data={out / 'mmc4'}", f"--model={model}", "--num-workers=0"
        )
        features = _manifest(out / "mmc4").features or {}
        num_rows = 0
        for path in sorted((out / "mmc4/features").glob("*.arrow")):
            with pa.memory_map(str(path)) as file:
                num_rows += pa.ipc.open_file(file).read_all().num_rows
        _expect("features", num_rows, manifest.num_images)
        report.say(
            "features",
            f"{num_rows} images x {features['num_tokens']} tokens x "
            f"{features['width']}, {features['patches']}",
        )


def _train(options: Demo, out: Path, report: Report, jobs: Jobs) -> None:
    first, run = out / "run_documents", out / "run"
    with report.part("Train on the documents' features, the visual encoder frozen"):
        jobs.train(
            "train_emu",
            f"--data={out / 'mmc4'}",
            f"--out={first}",
            f"--init={out / 'run_visual' / 'model'}",
            f"--steps={options.steps('features')}",
            "--num-workers=0",
            "--use-features",
        )
        _rows(first, options.steps("features"))
    with report.part("Train all parts: next token and next visual embedding"):
        jobs.train(
            "train_emu",
            f"--data={out / 'questions'}",
            f"--out={run}",
            f"--init={first / 'model'}",
            f"--steps={options.steps('emu')}",
            "--num-workers=0",
            f"--num-processes={NUM_PROCESSES}",
            "--train.batch-size=16",
            "--train.num-threads=1",
            "--train.optim.vision-lr=3e-4",
            "--train.optim.former-lr=5e-4",
            "--train.optim.language-lr=2e-3",
            "--train.optim.visual-freeze-ratio=0",
            "--train.optim.warmup-ratio=0.05",
            "--sequence.image-first-probability=0.6",
            "--train.log-every=20",
            "--train.checkpoint-every=500",
        )
        rows = _rows(run, options.steps("emu"))
        for name in ("text_loss", "visual_loss"):
            start, end = rows[0][name], fmean(row[name] for row in rows[-5:])
            report.say(f"{name}", f"{start:.3f} at the start, {end:.3f} at the end")
        if not rows[-1]["text_loss"] < rows[0]["text_loss"]:
            raise DemoError(f"the text loss of {run} did not fall")


def _decoder(options: Demo, out: Path, report: Report, jobs: Jobs) -> None:
    model = out / "run" / "model"
    with report.part("Train the visual decoder on the model's own embeddings"):
        jobs.train(
            "train_decoder",
            f"--num-processes={NUM_PROCESSES}",
            f"--model={model}",
            f"--data={out / 'captions'}",
            f"--steps={options.steps('decoder')}",
            "--batch-size=16",
            f"--rules.max-images={MAX_PROMPTED}",
        )
        if not (model / "decoder" / "unet").is_dir():
            raise DemoError(f"{model / 'decoder'} holds no U-Net")
        _rows(model / "decoder", options.steps("decoder"))


def _exam(options: Demo, out: Path, report: Report, jobs: Jobs) -> None:
    from tqdm import tqdm

    from jobs.demo_client import held_out_pair, request_reply, wait_until_healthy
    from jobs.demo_scores import score, verdict, write_page
    from jobs.serve import free_port
    from pipelines.miniworld.config import PairsConfig

    with report.part(f"Serve the model and examine it on {options.num_scenes} new scenes"):
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "jobs.serve", f"--model={out / 'run' / 'model'}"]
        server = subprocess.Popen(
            [*command, f"--port={port}"], env=jobs.environment, stderr=jobs.stderr
        )
        config = PairsConfig(seed=options.seed)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_healthy(address, lambda: server.poll() is None)
            pairs = [held_out_pair(config, n) for n in range(options.num_scenes)]
            with ThreadPoolExecutor(NUM_CLIENTS) as clients:
                each = clients.map(
                    lambda n: request_reply(address, pairs[n], n, config.side_px), range(len(pairs))
                )
                replies = list(tqdm(each, desc="new scenes", total=len(pairs), mininterval=5))
        finally:
            server.terminate()
            server.wait(timeout=60)
        scores = score(replies)
        for group in (scores.captions, scores.answers, scores.images):
            report.say(group[0].name, f"{group[0].share:.0%} (chance: {group[0].chance:.2%})")
            report.say("  by attribute", ", ".join(map(str, group[1:])))
        report.say("verdict", verdict(scores))
        page = write_page(replies, scores, out, _remark(options))
        report.say("page", str(page))


def _remark(options: Demo) -> str:
    steps = {name: f"{options.steps(name):,}" for name in STEPS}
    return (
        f"All weights were trained from scratch on synthetic data: {steps['visual']} optimizer steps of the "
        f"visual parts, {steps['emu']} of the whole model, {steps['decoder']} of the visual decoder."
    )


def _rows(run: Path, steps: int) -> list[dict[str, Any]]:
    """The metrics of a run; raises `DemoError` if it did not take its steps."""
    from emu.train.run_folder import METRICS, read_metrics

    rows = read_metrics(run)
    if not rows:
        raise DemoError(f"{run / METRICS} is empty: no optimizer step was taken")
    _expect("optimizer steps", rows[-1]["step"], steps)
    return rows


def _manifest(dataset: Path) -> Manifest:
    from schemas.manifest import MANIFEST_FILE, manifest_from_json

    path = dataset / MANIFEST_FILE
    return manifest_from_json(path.read_text(), str(path))


def _expect(name: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise DemoError(f"{name}: {found}, expected {wanted}")


def _summary(report: Report, out: Path) -> None:
    print(f"\n{RULE}\nOutputs and durations\n{RULE}")
    for title, seconds in report.seconds.items():
        print(f"  {seconds:6.1f} s  {title}")
    print(f"  {sum(report.seconds.values()):6.1f} s  in all\n")
    for name, value in report.lines:
        print(f"  {name:24} {value}")
    print(f"\n  dataset report           {out / 'mmc4' / 'report.html'}")
    print(f"  loss curves              {out / 'run' / 'curves.svg'}")
    print(f"  replies to new scenes    {out / 'replies.html'}")
    print(f"  the model                {out / 'run' / 'model'}")
    print(f"\n  serve it: .venv/bin/emu serve --model {out / 'run' / 'model'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(Demo, run_demo, arguments, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
