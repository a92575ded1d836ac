"""Ctrl-C in tests: SIGINT to the process of a job, at a moment that the test chooses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EndedProcess:
    """The exit code of a process, and its output."""

    exit_code: int
    out: str
    error: str

    @property
    def last_line(self) -> str:
        """The last line of standard error."""
        return self.error.rstrip("\n").rpartition("\n")[2]


def interrupted(
    repository: Path,
    is_time: Callable[[], bool],
    *command: object,
    to_all: bool = False,
    number: int = signal.SIGINT,
) -> EndedProcess:
    """Runs a job (module, options) and interrupts it as soon as `is_time()`, with `to_all` also its children."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts jobs in the background with SIGINT ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        try:
            while not is_time():
                assert process.poll() is None, process.communicate()
                time.sleep(0.005)
            if to_all:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            out, error = process.communicate(timeout=120)
        finally:
            process.kill()
    return EndedProcess(process.returncode, out, error)
