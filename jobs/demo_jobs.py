"""Runs the jobs of the demo; those that need torch share one import of it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver

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
        self._check(name, job.wait())

    def train(self, name: str, *arguments: str) -> None:
        """Run a job of a model to its end; raises `DemoError` if it fails."""
        print(f"   $ jobs/{name}.py {' '.join(arguments)}", flush=True)
        job = self._server.Process(target=run_imported, args=(name, arguments))
        job.start()
        job.join()
        self._check(name, job.exitcode)

    def _check(self, name: str, exit_code: int | None) -> None:
        if exit_code:
            raise DemoError(f"jobs/{name}.py ended with exit code {exit_code}; its output is above")


def run_imported(name: str, arguments: Sequence[str]) -> None:
    """Run a job in this process and end it with the job's exit code."""
    sys.exit(import_module(f"jobs.{name}").main(arguments))
