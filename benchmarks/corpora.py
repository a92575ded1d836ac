"""Every job that builds a corpus, beside the bare loop of libraries that does the same work, as JSON lines.

    python -m benchmarks.corpora
    python -m benchmarks.corpora --sample-data FOLDER --subjects webvid storyboards_small --rounds 5

| subject                                | unit  | the bare loop                                           |
|----------------------------------------|-------|---------------------------------------------------------|
| `laion`, `mmc4`, `instruct`            | image | read, decode by libjpeg-turbo, resize by OpenCV, encode |
| `webvid`                               | clip  | decord: 8 frames of equal steps, resize, encode         |
| `storyboards_large`, `…_small`         | frame | OpenCV: decode the sheet, cut, encode                   |
| `features`                             | image | decode and encode batches that are in memory            |
| `engines`                              | image | `--engine native` beside `--engine img2dataset`         |

A job runs from its metadata and a folder of media to the published, checked dataset with its report, in this process
(`--runner local`). `whole` is the ratio of a job's rate to that of its loop. `per_unit` leaves out what a build of a
single record costs (the report, locks, the start of a decoder): what remains in builds of millions. `by_hand` is
`per_unit` beside a script that also reads the texts and writes shards by webdataset (`benchmarks/corpora_by_hand.py`).
CPU-seconds are those of this process and its finished children. Rounds are interleaved; the first is not counted;
medians are given.
"""

import io
import json
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import tyro

from benchmarks import corpora_inputs as inputs
from benchmarks.clients import cpu_s
from benchmarks.corpora_by_hand import write
from benchmarks.corpora_inputs import BuildInput

Name = Literal[
    "laion",
    "mmc4",
    "instruct",
    "webvid",
    "storyboards_large",
    "storyboards_small",
    "features",
    "engines",
]
_TARGET = 0.8


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    subjects: tuple[Name, ...] = (
        "laion",
        "mmc4",
        "instruct",
        "webvid",
        "storyboards_large",
        "storyboards_small",
        "features",
        "engines",
    )
    rounds: int = 3
    """Interleaved rounds, after one that is not counted."""
    num_images: int = 480
    """Images of laion, mmc4 (4 to a document), instruct and engines."""
    num_clips: int = 24
    num_videos: int = 40
    """Of storyboards, 95 frames each."""
    sample_data: Path | None = None
    """Folder with `videos/*.mp4`, whose clips are taken; synthetic ones without it."""


def main(options: Options) -> None:
    """Prints one line per round and a summary per subject."""
    cv2.setNumThreads(1)
    told = {**asdict(options), "sample_data": options.sample_data is not None}
    _print(machine=platform.machine(), python=platform.python_version(), options=told)
    for subject in options.subjects:
        with tempfile.TemporaryDirectory(prefix="corpora-") as folder:
            _SUBJECTS[subject](Path(folder), options, subject)


def _build(folder: Path, options: Options, subject: Name) -> None:
    """A job, the same for its first record alone, and the bare loop."""
    made = _input(folder, options, subject)
    runs: dict[str, Callable[[], object]] = {
        "job": lambda: _job(folder, made),
        "one": lambda: _job(folder, made, ("--limit", "1")),
        "bare": made.bare,
        "by_hand": lambda: _by_hand(folder, made),
    }
    rows = list(_rounds(subject, runs, options.rounds))
    count = made.count
    rates = {name: statistics.median(count / row[name] for row in rows) for name in ("job", "bare")}
    whole = statistics.median(row["bare"] / row["job"] for row in rows)
    share = (count - made.count_of_one) / count
    rest = statistics.median(row["bare"] * share / (row["job"] - row["one"]) for row in rows)
    by_hand = statistics.median(row["by_hand"] * share / (row["job"] - row["one"]) for row in rows)
    _print(
        subject=subject,
        unit=made.unit,
        count=count,
        job_per_cpu_s=round(rates["job"], 1),
        bare_per_cpu_s=round(rates["bare"], 1),
        cpu_s_of_one_record=round(statistics.median(row["one"] for row in rows), 2),
        whole=round(whole, 2),
        per_unit=round(rest, 2),
        by_hand=round(by_hand, 2),
        target=_TARGET,
    )


def _input(folder: Path, options: Options, subject: Name) -> BuildInput:
    if subject == "laion":
        return inputs.pairs(folder, options.num_images)
    if subject == "mmc4":
        return inputs.documents(folder, options.num_images)
    if subject == "instruct":
        return inputs.dialogues(folder, options.num_images)
    if subject == "webvid":
        return inputs.clips(folder, options.num_clips, options.sample_data)
    return inputs.sheets(folder, options.num_videos, subject.removeprefix("storyboards_"))


def _features(folder: Path, options: Options, subject: Name) -> None:
    from benchmarks.features import FeaturesBenchmark, run_benchmark

    chosen = FeaturesBenchmark("tiny", num_images=options.num_images, rounds=options.rounds)
    record = next(run_benchmark(chosen))
    _print(subject=subject, unit="image", **record, target=0.9)


def _engines(folder: Path, options: Options, subject: Name) -> None:
    with inputs.links(folder, options.num_images) as made:
        runs: dict[str, Callable[[], object]] = {
            engine: lambda engine=engine: _job(folder, made, ("--engine", engine))
            for engine in ("native", "img2dataset")
        }
        rows = list(_rounds(subject, runs, options.rounds))
    rates = {
        f"{name}_per_cpu_s": round(statistics.median(made.count / row[name] for row in rows), 1)
        for name in runs
    }
    ratio = statistics.median(row["img2dataset"] / row["native"] for row in rows)
    _print(subject=subject, unit=made.unit, count=made.count, **rates, native_rate=round(ratio, 2))


def _rounds(
    subject: Name, runs: dict[str, Callable[[], object]], num: int
) -> Iterator[dict[str, float]]:
    for number in range(-1, num):
        row: dict[str, float] = {}
        for name, run in runs.items():
            before = cpu_s()
            removed_s = run()
            row[name] = cpu_s() - before - (removed_s if isinstance(removed_s, float) else 0.0)
        if number >= 0:
            told = {f"{name}_cpu_s": round(value, 2) for name, value in row.items()}
            _print(subject=subject, round=number, **told)
            yield row


def _by_hand(folder: Path, made: BuildInput) -> float:
    """Write the samples that a script makes; returns the CPU-seconds of removing them."""
    path = folder / "by_hand.tar"
    assert write(made.by_hand(), path) == made.num_images
    before = cpu_s()
    path.unlink()
    return cpu_s() - before


def _job(folder: Path, made: BuildInput, more: tuple[str, ...] = ()) -> float:
    """Run the job; returns the CPU-seconds of removing what it wrote."""
    out = folder / "out"
    words = [*made.words, "--out", str(out), "--runner", "local", *more]
    messages = io.StringIO()
    with redirect_stdout(messages), redirect_stderr(messages):
        status = made.job(words)
    assert status == 0, messages.getvalue()[-2000:]
    manifest = json.loads((out / "manifest.json").read_text())
    num_kept = sum(shard["num_images"] for shard in manifest["shards"])
    assert "--limit" in more or num_kept == made.num_images, (num_kept, made.num_images)
    before = cpu_s()
    shutil.rmtree(out)
    return cpu_s() - before


_SUBJECTS: dict[Name, Callable[[Path, Options, Name], None]] = {
    "laion": _build,
    "mmc4": _build,
    "instruct": _build,
    "webvid": _build,
    "storyboards_large": _build,
    "storyboards_small": _build,
    "features": _features,
    "engines": _engines,
}


def _print(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
