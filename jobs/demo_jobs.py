"""Runs the jobs of the demo; those that need torch share one import of it."""

from __future__ import annotations

import io
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

IMPORTED_ONCE = (
    "jobs.train_emu",
    "emu.train.loop",
    "emu.train.visual",
    "emu.train.decoder",
    "emu.decoders.pixel_diffusion",
)


class DemoError(RuntimeError):
    """A step of the pipeline whose output is not as expected."""


class Jobs:
    """Runs the jobs as a user would, with their output on the terminal.

    Trainings are forked from a process that imports torch and the model once, while the documents are built.
    """

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = dict(os.environ)
        self.stderr = os.dup(2)  # a session of Ray sends file descriptor 2 to its log
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(list(IMPORTED_ONCE))
        forkserver.ensure_running()

    def run(self, name: str, *arguments: str) -> None:
        """Run a job to its end; raises `DemoError` if it fails."""
        self.finish(name, self.start(name, *arguments))

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a job, for `finish`."""
        print(f"   $ jobs/{name}.py {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", f"jobs.{name}", *arguments]
        return subprocess.Popen(command, env=self.environment, stderr=self.stderr)

    def finish(self, name: str, job: subprocess.Popen[bytes]) -> None:
        """Wait for a job; raises `DemoError` if it failed."""
        self._check(f"jobs/{name}.py", job.wait())

    def train(self, name: str, *arguments: str) -> None:
        """Run a job of a model to its end; raises `DemoError` if it fails."""
        print(f"   $ jobs/{name}.py {' '.join(arguments)}", flush=True)
        self.join(f"jobs/{name}.py", self.fork(run_imported, name, arguments))

    def fork(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        """Start a function in a process that has torch imported, for `join`."""
        process = self._server.Process(target=target, args=arguments)
        process.start()
        return process

    def join(self, name: str, process: BaseProcess) -> None:
        """Wait for a process; raises `DemoError` if it failed."""
        process.join()
        self._check(name, process.exitcode)

    def _check(self, name: str, exit_code: int | None) -> None:
        if exit_code:
            raise DemoError(f"{name} ended with exit code {exit_code}; its output is above")


def run_imported(name: str, arguments: Sequence[str]) -> None:
    """Run a job in this process and end it with the job's exit code."""
    sys.exit(import_module(f"jobs.{name}").main(arguments))


NUM_RECORDS = 24
"""Records of each corpus in the demo."""


def dataset_of(out: Path, corpus: str) -> Path:
    """The dataset of a corpus that `build_portions` writes."""
    return out / corpus


def build_portions(out: Path, corpora: Sequence[str], seed: int) -> None:
    """Write and build a small portion of each corpus, one after the other, as `emu build` does.

    Ends the process with the exit code of the first build that fails, and shows its output.
    """
    from jobs.__main__ import main
    from pipelines.miniworld import WORLDS
    from pipelines.miniworld.config import MiniworldConfig
    from pipelines.miniworld.server import ImageServer

    for corpus in corpora:
        form, world = import_module(WORLDS[corpus]), out / f"{corpus}_world"
        form.write_world(MiniworldConfig(seed=seed, num_documents=NUM_RECORDS), world)
        words = [*shlex.split(form.BUILD.format(out=world))[1:], "--runner=local"]
        words.append(f"--out={dataset_of(out, corpus)}")
        with (
            ImageServer(world / "images", retry_after_s=0) as server,
            redirect_stdout(io.StringIO()) as printed,
        ):
            words += [f"--fetch.allow-host={server.allow_host}", "--log-level=error"]
            exit_code = main(words)
        if exit_code:
            print(printed.getvalue(), flush=True)
            sys.exit(exit_code)
