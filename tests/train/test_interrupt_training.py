"""Ctrl-C and SIGTERM while a model is trained: it saves, one line, 130 or 143; resumed, it ends in the same weights."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest

from emu.train.checkpoint_folder import FOLDER, checkpoints
from emu.train.run_folder import read_metrics
from jobs import train_decoder, train_emu
from tests.data.small_dataset import document, write_dataset
from tests.interrupts import interrupted

GOES_ON = "stopped; the same command resumes where it stopped"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [document(number, number % 3) for number in range(20)]
    return write_dataset(tmp_path_factory.mktemp("interrupt") / "docs", documents, 8)


@contextmanager
def interrupt_here(is_time: Callable[[], bool], number: int = signal.SIGINT) -> Iterator[None]:
    """A signal to this process as soon as `is_time`, while the block runs."""
    is_over = Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            if is_time():
                os.kill(os.getpid(), number)
                return

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def options_of(data: Path, out: Path, num_workers: int = 0) -> list[str]:
    options = f"--data {data} --out {out} --steps 30 --batch-size 2 --num-workers {num_workers}"
    return [*options.split(), "--train.checkpoint-every", "5", "--seed", "3"]


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train_emu.main(options_of(data, out)) == 0
    return out


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_saves_and_goes_on(
    data: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    exit_code: int,
):
    stopped = tmp_path / "stopped"
    options = [*options_of(data, stopped), "--train.checkpoint-every", "30"]
    before = signal.getsignal(number)
    with interrupt_here(lambda: len(read_metrics(stopped)) > 5, number):
        assert train_emu.main(options) == exit_code
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == GOES_ON
    assert not (stopped / "model").exists()
    (saved,) = checkpoints(stopped / FOLDER)
    assert saved.step == read_metrics(stopped)[-1]["step"] > 5, "nothing is done twice"
    assert train_emu.main(options) == 0
    assert weights(stopped) == weights(whole)


def test_a_visual_decoder_that_is_stopped_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train_emu.main([*options_of(data, tmp_path / "run"), "--steps", "1"]) == 0
    model = tmp_path / "run" / "model"
    options = ["--model", str(model), "--data", str(data), "--steps", "400", "--batch-size", "1"]
    options += ["--train.checkpoint-every", "1"]
    with interrupt_here((tmp_path / "run/model_decoder/checkpoints").is_dir):
        assert train_decoder.main(options) == 130
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == GOES_ON
    assert not (model / "decoder").exists()
    assert train_decoder.main([*options, "--resume", "must", "--steps", "401"]) == 2
    assert "its length cannot become 401" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_ray_that_is_stopped_saves_and_goes_on(
    repository: Path, data: Path, whole: Path, tmp_path: Path
):
    stopped = tmp_path / "stopped"
    options = [*options_of(data, stopped, num_workers=1), "--train.checkpoint-every", "30"]
    is_time = lambda: len(read_metrics(stopped)) > 5  # noqa: E731
    ended = interrupted(repository, is_time, "jobs.train_emu", *options, to_all=True)
    assert ended.exit_code == 130, ended.error
    assert GOES_ON in ended.error and "Traceback" not in ended.error
    assert not (stopped / "model").exists()
    (saved,) = checkpoints(stopped / FOLDER)
    assert saved.step == read_metrics(stopped)[-1]["step"] > 5
    assert train_emu.main([*options_of(data, stopped), "--train.checkpoint-every", "30"]) == 0
    assert weights(stopped) == weights(whole)


@pytest.mark.parametrize(
    ("options", "worker"),
    [
        (("--num-workers=0", "--num-processes=2"), "jobs.train_emu"),
        (("--num-workers=2",), "RayTrainWorker"),
    ],
    ids=["processes", "ray"],
)
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_end_with_the_process_that_started_them(
    repository: Path, data: Path, tmp_path: Path, options: tuple[str, ...], worker: str
):
    """After `kill -9` of it they are gone within seconds, and take no further step."""
    command = [
        sys.executable,
        "-m",
        "jobs.train_emu",
        *options_of(data, tmp_path / "out"),
        *options,
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--steps", "100000"], cwd=repository, stdout=log, stderr=log, text=True
        )
    try:
        while len(read_metrics(tmp_path / "out")) < 3:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if worker in " ".join(child.cmdline())]
        assert len(workers) == 2
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
