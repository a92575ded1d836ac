"""Ctrl-C while a model is trained: one line, status 130, and a start after it ends in the same weights."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from emu.train.run_folder import METRICS
from jobs import train_decoder, train_emu
from tests.data.small_dataset import document, write_dataset
from tests.interrupts import interrupted

GOES_ON = "stopped; the same command resumes where it stopped"
STARTS_AGAIN = "stopped; nothing is written; the same command starts again from the beginning"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [document(number, number % 3) for number in range(20)]
    return write_dataset(tmp_path_factory.mktemp("interrupt") / "docs", documents, 8)


@contextmanager
def interrupt_here(is_time: Callable[[], bool]) -> Iterator[None]:
    """SIGINT to this process as soon as `is_time`, while the block runs."""
    is_over = Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            if is_time():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def options_of(data: Path, out: Path, num_workers: int = 0) -> list[str]:
    options = f"--data {data} --out {out} --steps 60 --batch-size 2 --num-workers {num_workers}"
    return [*options.split(), "--train.checkpoint-every", "5", "--seed", "3"]


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_a_run_that_is_stopped_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_emu.main(options_of(data, whole)) == 0
    with interrupt_here((stopped / "checkpoints" / "step-00000005").is_dir):
        assert train_emu.main(options_of(data, stopped)) == 130
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == GOES_ON
    assert not (stopped / "model").exists()
    assert train_emu.main(options_of(data, stopped)) == 0
    assert weights(stopped) == weights(whole)


def test_a_visual_decoder_that_is_stopped_is_not_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train_emu.main([*options_of(data, tmp_path / "run"), "--steps", "1"]) == 0
    model = tmp_path / "run" / "model"
    options = ["--model", str(model), "--data", str(data)]
    with interrupt_here((model / ".decoder.partial" / METRICS).is_file):
        assert train_decoder.main([*options, "--autoencoder-steps", "100000"]) == 130
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == STARTS_AGAIN
    assert not (model / "decoder").exists()
    short = ["--autoencoder-steps", "1", "--steps", "1", "--batch-size", "1"]
    assert train_decoder.main([*options, *short]) == 0
    assert (model / "decoder" / "unet").is_dir()


@pytest.mark.slow
def test_a_run_on_ray_that_is_stopped_goes_on(repository: Path, data: Path, tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_emu.main(options_of(data, whole)) == 0
    options = options_of(data, stopped, num_workers=1)
    is_time = (stopped / "checkpoints" / "step-00000005").is_dir
    ended = interrupted(repository, is_time, "jobs.train_emu", *options, to_all=True)
    assert ended.exit_code == 130, ended.error
    assert GOES_ON in ended.error and "Traceback" not in ended.error
    assert not (stopped / "model").exists()
    assert train_emu.main(options) == 0
    assert weights(stopped) == weights(whole)
