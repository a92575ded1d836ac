"""A run with `--num-workers 2` (Ray Train), with `--num-processes 2` and in one process; each resumes the others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emu.train.checkpoint_folder import FOLDER, checkpoints
from emu.train.run_folder import read_metrics
from jobs import train_decoder, train_emu
from tests.data.small_dataset import clip, document, pair, write_dataset
from tests.train.plans import are_equal, weights_of
from tests.train.processes import SERVER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
RAY, PROCESSES, ONE = (
    ("--num-workers=2", "--num-cpus=2"),
    ("--num-workers=0", "--num-processes=2"),
    ("--num-workers=0",),
)
STEPS, HALF = 6, 3
Main = Callable[[list[str]], int]


def in_a_process(main: Main, *options: str) -> None:
    """A command line, in a process that has differentiated nothing."""
    SERVER.set_forkserver_preload(["tests.train.processes"])
    process = SERVER.Process(target=_exit_with, args=(main, list(options)))
    process.start()
    process.join(600)
    assert process.exitcode == 0, options


def _exit_with(main: Main, options: list[str]) -> None:
    raise SystemExit(main(options))


def back_at_half(out: Path, copy: Path) -> Path:
    """A copy of a finished run as it was after half of its steps."""
    shutil.copytree(out, copy)
    half, last = checkpoints(copy / FOLDER)
    assert (half.step, last.step) == (HALF, STEPS)
    shutil.rmtree(last.address)
    (copy / FOLDER / "latest").write_text(f"{half.name}\n")
    shutil.rmtree(copy / "model")
    (copy / "summary.json").unlink()
    return copy


def losses(out: Path, *names: str) -> list[float]:
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row[name] for row in rows for name in names or ("text_loss", "visual_loss")]


def test_sharded_weights_on_ray_and_in_processes(tmp_path: Path):
    data = write_dataset(tmp_path / "docs", [document(number, number % 3) for number in range(12)])
    clips = write_dataset(tmp_path / "clips", [clip(number) for number in range(8)])
    options = ["--data", f"docs={data}:2", f"clips={clips}:1", f"--steps={STEPS}", "--batch-size=2"]
    options += [f"--train.checkpoint-every={HALF}"]

    def run(out: Path, where: tuple[str, ...], parallel: str) -> Path:
        in_a_process(train_emu.main, *options, f"--out={out}", f"--parallel={parallel}", *where)
        return out

    copies = run(tmp_path / "copies", PROCESSES, "ddp")
    shards = run(tmp_path / "shards", PROCESSES, "fsdp")
    on_ray = run(tmp_path / "ray", RAY, "fsdp")
    to_ray = run(back_at_half(shards, tmp_path / "to_ray"), RAY, "fsdp")
    from_ray = run(back_at_half(on_ray, tmp_path / "from_ray"), PROCESSES, "fsdp")
    of_copies = run(back_at_half(copies, tmp_path / "of_copies"), RAY, "fsdp")
    for other in (shards, on_ray, to_ray, from_ray, of_copies):
        assert losses(other) == pytest.approx(losses(copies), rel=1e-6, abs=1e-6), other.name
    for other in (on_ray, to_ray, from_ray):
        assert are_equal(weights_of(other / "model"), weights_of(shards / "model")), other.name


def test_the_visual_decoder_on_ray_and_in_processes(tmp_path: Path):
    data = write_dataset(tmp_path / "data", [pair(number) for number in range(20)])
    first = ["--data", str(data), "--out", str(tmp_path / "run"), "--steps=1", "--num-workers=0"]
    in_a_process(train_emu.main, *first)
    options = ["--model", str(tmp_path / "run/model"), "--data", str(data), f"--steps={STEPS}"]
    options += ["--batch-size=4", f"--train.checkpoint-every={HALF}", "--train.log-every=1"]

    def run(out: Path, where: tuple[str, ...]) -> Path:
        target = f"--decoder={tmp_path / 'decoders' / out.name}"
        in_a_process(train_decoder.main, *options, f"--out={out}", target, *where)
        return out

    one = run(tmp_path / "one", ONE)
    two = run(tmp_path / "two", PROCESSES)
    on_ray = run(tmp_path / "ray", RAY)
    to_ray = run(back_at_half(two, tmp_path / "to_ray"), RAY)
    to_one = run(back_at_half(on_ray, tmp_path / "to_one"), ONE)
    norms = losses(one, "gradient_norm")
    for other in (two, on_ray, to_ray, to_one):
        assert losses(other) == pytest.approx(losses(one), rel=1e-6, abs=1e-6), other.name
        assert losses(other, "gradient_norm") == pytest.approx(norms, rel=1e-5), other.name
