"""Ctrl-C as a job sees it: SIGINT to a real process, at a moment that a test chooses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, and what it wrote."""

    status: int
    out: str
    error: str

    @property
    def last_line(self) -> str:
        """The last line of standard error."""
        return self.error.rstrip("\n").rpartition("\n")[2]


def interrupted(
    repository: Path, is_time: Callable[[], bool], *command: object, to_all: bool = False
) -> Ended:
    """A job (module, options) that gets SIGINT as soon as `is_time`; `to_all` as a terminal does, its children too."""
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
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=120)
        finally:
            process.kill()
    return Ended(process.returncode, out, error)
