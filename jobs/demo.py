#!/usr/bin/env python3
"""The pipeline end to end on a synthetic world: documents, shards, features, training steps, a served reply.

    make demo

Runs the jobs of this folder one after the other on a local Ray, as a user would, and verifies the counts of each
output. Exit code 0 means that every step ran and every count was as expected.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import Field
from tqdm import tqdm

from emu.train.run_folder import METRICS, read_metrics
from jobs.cli import interrupted, run_job
from jobs.cluster import ray_session
from jobs.demo_client import (
    ClientError,
    count_correct_words,
    held_out_image,
    request_replies,
    wait_until_healthy,
    write_replies,
)
from jobs.serve import free_port
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import MiniworldSummary, write_mmc4
from pipelines.miniworld.server import ImageServer
from schemas.manifest import MANIFEST_FILE, Manifest, manifest_from_json
from schemas.validation import Checked

RULE = "─" * 78
NUM_IMAGES = 4  # that the served model is asked about


class DemoError(RuntimeError):
    """A step of the pipeline whose output is not as expected."""


@dataclass(frozen=True)
class Demo(Checked):
    """Builds a synthetic world, a dataset, features and a model, and sends requests to the served model."""

    out: Path = Path("demo_out")
    """Folder for all outputs; finished steps found there are not repeated."""
    num_documents: Annotated[int, Field(ge=3, description="they are in three files")] = 240
    """Documents of the synthetic world, at least 3 (they are in three files)."""
    feature_steps: Annotated[int, Field(ge=1)] = 40
    """Optimizer steps on the precomputed features, with the visual encoder frozen."""
    steps: Annotated[int, Field(ge=1)] = 500
    """Optimizer steps on the images, with all parts trained."""
    decoder_steps: Annotated[int, Field(ge=1)] = 250
    """Optimizer steps of the visual decoder's U-Net."""
    num_workers: Annotated[int, Field(ge=1)] = 2
    """Workers of Ray Train in the training of all parts."""
    seed: int = 7
    """Of the world and of the training."""


@dataclass
class Report:
    """Measurements for the summary at the end."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def part(self, number: int, title: str) -> Iterator[None]:
        """A step of the pipeline, with its heading and its duration."""
        print(f"\n{RULE}\n{number}. {title}\n{RULE}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - start
        print(f"   {self.seconds[title]:.1f} s", flush=True)

    def say(self, name: str, value: str) -> None:
        """A line of the summary, also printed at once."""
        self.lines.append((name, value))
        print(f"   {name}: {value}", flush=True)


def run_demo(options: Demo) -> int:
    """Runs all steps; returns the exit code: 0 if all of them succeeded, 1 if not, 130 on Ctrl-C."""
    report, out = Report(), options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        summary = _synthesize(options, out, report)
        with ray_session(num_cpus=max(4, options.num_workers + 2)):
            environment = dict(os.environ, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
            manifest = _build(summary, out, report, environment)
            _features(manifest, out, report, environment)
            _train(options, out, report, environment)
            _decoder(options, out, report, environment)
            _serve(options, out, report, environment)
    except KeyboardInterrupt:
        return interrupted()
    except (ClientError, DemoError, OSError, ValueError) as error:
        print(f"\nThe demo stopped: {error}", file=sys.stderr)
        return 1
    _summary(report, out)
    return 0


def _synthesize(options: Demo, out: Path, report: Report) -> MiniworldSummary:
    with report.part(1, "Write a synthetic world, as MMC4 documents"):
        config = MiniworldConfig(
            seed=options.seed,
            num_documents=options.num_documents,
            images_per_document=(1, 3),
            sentences_per_document=(3, 4),
            max_things=1,
        )
        summary = write_mmc4(config, out / "world")
        report.say(
            "world",
            f"{summary.num_records} documents, {summary.num_links} links, some of them broken",
        )
    return summary


def _build(
    summary: MiniworldSummary, out: Path, report: Report, environment: Mapping[str, str]
) -> Manifest:
    with report.part(2, "Fetch, clean, write shards"):
        with ImageServer(out / "world" / "images", retry_after_s=0) as server:
            _job(
                "build_mmc4",
                environment,
                f"--documents={out / 'world' / 'documents'}/*",
                f"--out={out / 'mmc4'}",
                "--samples-per-shard=150",
                f"--fetch.allow-host={server.allow_host}",
            )
        manifest = _manifest(out)
        _expect("records", manifest.records.total, summary.num_records)
        _expect("documents kept", manifest.records.kept, summary.num_documents_kept)
        _expect("links", manifest.links.total, summary.num_links)
        _expect("images", manifest.num_images, summary.num_images_kept)
        _expect("rows of the index", _index_rows(out), manifest.num_samples)
        dropped = sum(manifest.links.dropped.values())
        report.say(
            "dataset",
            f"{manifest.num_samples} documents, {manifest.num_images} images in "
            f"{len(manifest.shards)} shards; {dropped} links dropped, each with its reason",
        )
    return manifest


def _features(
    manifest: Manifest, out: Path, report: Report, environment: Mapping[str, str]
) -> None:
    with report.part(3, "Precompute features of the visual encoder"):
        _job("precompute_features", environment, f"--data={out / 'mmc4'}", "--recipe=tiny")
        features = _manifest(out).features or {}
        num_rows = sum(_feature_rows(f) for f in sorted((out / "mmc4/features").glob("*.arrow")))
        _expect("features", num_rows, manifest.num_images)
        report.say(
            "features",
            f"{num_rows} images x {features['num_tokens']} tokens x "
            f"{features['width']}, {features['storage']}",
        )


def _train(options: Demo, out: Path, report: Report, environment: Mapping[str, str]) -> None:
    shared = (f"--data={out / 'mmc4'}", "--recipe=tiny")
    with report.part(4, "Train on the features, the visual encoder frozen"):
        first = out / "run_features"
        _job(
            "train_emu",
            environment,
            *shared,
            f"--out={first}",
            f"--steps={options.feature_steps}",
            "--num-workers=0",  # in one process: workers would take longer to start than to train
            "--use-features",
            "--train.optim.visual-freeze-ratio=0.9",  # the language model learns its words first
        )
        _steps(first, options.feature_steps, report)
    with report.part(5, "Train all parts: next token and next visual embedding"):
        run = out / "run"
        _job(
            "train_emu",
            environment,
            *shared,
            f"--out={run}",
            f"--steps={options.steps}",
            f"--num-workers={options.num_workers}",
            f"--init={first / 'model'}",
        )
        _steps(run, options.steps, report)


def _steps(run: Path, steps: int, report: Report) -> None:
    rows = read_metrics(run)
    if not rows:
        raise DemoError(f"{run / METRICS} is empty: no optimizer step was taken")
    _expect("optimizer steps", rows[-1]["step"], steps)
    for name in ("text_loss", "visual_loss"):
        start, end = rows[0][name], fmean(row[name] for row in rows[-10:])
        report.say(
            f"{run.name} {name}", f"{start:.3f} in the first step, {end:.3f} over the last ten"
        )
        if name == "text_loss" and not end < start:
            raise DemoError(f"{name} of {run.name} did not fall: {start} to {end}")


def _decoder(options: Demo, out: Path, report: Report, environment: Mapping[str, str]) -> None:
    with report.part(6, "Train the visual decoder on the model's own embeddings"):
        model = out / "run" / "model"
        _job(
            "train_decoder",
            # a single process uses all cores. Idle threads sleep: if they spin, as by default, a step takes
            # 30 times longer as soon as other processes use the cores, too
            {
                **environment,
                "OMP_NUM_THREADS": str(os.cpu_count() or 1),
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            f"--model={model}",
            f"--data={out / 'mmc4'}",
            f"--steps={options.decoder_steps}",
            "--autoencoder-steps=200",
        )
        if not (model / "decoder" / "unet").is_dir():
            raise DemoError(f"{model / 'decoder'} holds no U-Net")


def _serve(options: Demo, out: Path, report: Report, environment: Mapping[str, str]) -> None:
    with report.part(7, "Serve the model, request a caption, an answer and an image"):
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "jobs.serve", f"--model={out / 'run' / 'model'}"]
        server = subprocess.Popen([*command, f"--port={port}"], env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_healthy(address, lambda: server.poll() is None)
            replies = []
            for number in tqdm(range(1, NUM_IMAGES + 1), desc="held-out images"):
                image = held_out_image(options.seed + number)
                replies.append(request_replies(address, image, number))
        finally:
            server.terminate()
            server.wait(timeout=60)
        for each in replies:
            report.say("caption", f"“{each.caption}” (the image shows {each.true_caption})")
        first = replies[0]
        report.say("answer", f"“{first.answer}” to “{first.question}” ({first.true_answer})")
        num_correct, total = count_correct_words(replies)
        report.say(
            "held-out words", f"{num_correct} of {total} that describe the {len(replies)} images"
        )
        page = write_replies(replies, out / "images", _remark(options))
        report.say("images", f"{len(replies)} generated, beside the replies: {page}")


def _remark(options: Demo) -> str:
    return (
        f"The model has had {options.feature_steps + options.steps} optimizer steps, its visual decoder "
        f"{options.decoder_steps}: enough to recognise backgrounds and some colours and to generate blots on a "
        "background, not yet to recognise shapes, to count, or to generate what the prompt describes."
    )


def _job(name: str, environment: Mapping[str, str], *arguments: str) -> None:
    """Runs a job as a user would; its output goes to the terminal."""
    print(f"   $ jobs/{name}.py {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", *arguments], env=environment)
    if done.returncode:
        raise DemoError(
            f"jobs/{name}.py ended with exit code {done.returncode}; its output is above"
        )


def _manifest(out: Path) -> Manifest:
    path = out / "mmc4" / MANIFEST_FILE
    return manifest_from_json(path.read_text(), str(path))


def _index_rows(out: Path) -> int:
    return sum(pq.read_metadata(f).num_rows for f in sorted((out / "mmc4/index").glob("*")))


def _feature_rows(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all().num_rows


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
    print(f"  replies and images       {out / 'images' / 'replies.html'}")
    print(f"  the model                {out / 'run' / 'model'}")
    print(f"\n  serve it: .venv/bin/python jobs/serve.py --model {out / 'run' / 'model'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(Demo, run_demo, arguments, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
