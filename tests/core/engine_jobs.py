"""Starting the small pipeline as a process of its own, to be killed or waited for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("numbers_pipeline.py")


def snapshot(repository: Path, folder: Path) -> Path:
    """A copy of the packages and of the job, because the code must not change between two starts."""
    for package in ("pipelines", "schemas"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / package, folder / package, ignore=ignore)
    shutil.copy(SCRIPT, folder)
    return folder


@dataclass(frozen=True)
class Job:
    """The small pipeline as a command, with the folder of its code."""

    code: Path

    def start(self, out: Path, *options: str) -> subprocess.Popen:
        """The job in a process group of its own."""
        environment = os.environ | {"PYTHONPATH": str(self.code)}
        command = [sys.executable, str(self.code / SCRIPT.name), str(out), *options]
        return subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, start_new_session=True, text=True
        )

    def to_the_end(self, out: Path, *options: str) -> None:
        """The job, undisturbed."""
        process = self.start(out, *options)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


def kill_group(process: subprocess.Popen, timeout_s: float = 60) -> None:
    """Kill a job and all that it has started, and wait until none of them is left."""
    session = session_of(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=timeout_s)
    deadline = time.monotonic() + timeout_s
    while session and time.monotonic() < deadline:
        session = {pid for pid in session if is_alive(pid)}
        for pid in session:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert not session, f"still alive: {session}"


def session_of(leader: int) -> set[int]:
    """The processes of the session that a process leads, and their descendants."""
    parents: dict[int, int] = {}
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                if int(fields[3]) == leader:
                    found.add(int(entry.name))
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def is_alive(pid: int) -> bool:
    """True unless the process is gone or only waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
