"""Starting the small pipeline as a process of its own, to be killed or waited for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("numbers_pipeline.py")


def snapshot(repository: Path, folder: Path) -> Path:
    """A copy of the packages and of the job, because the code must not change between two starts."""
    for package in ("pipelines", "schemas"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / package, folder / package, ignore=ignore)
    for file in (SCRIPT, Path(__file__)):
        shutil.copy(file, folder)
    return folder


@dataclass(frozen=True)
class Job:
    """The small pipeline as a command, with the folder of its code."""

    code: Path

    def start(self, out: Path | str, *options: str) -> subprocess.Popen:
        """The job in a process group of its own."""
        return self._python(self.code / SCRIPT.name, str(out), *options)

    def to_the_end(self, out: Path | str, *options: str) -> None:
        """The job, undisturbed."""
        process = self.start(out, *options)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors

    @contextmanager
    def forks(self) -> Iterator["Forks"]:
        """Quicker starts: processes forked from one that has imported everything and done nothing."""
        with self._python(self.code / Path(__file__).name, stderr=None) as server:
            assert server.stdin is not None
            try:
                yield Forks(server)
            finally:
                server.stdin.close()

    def _python(
        self, *command: Path | str, stderr: int | None = subprocess.PIPE
    ) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | {"PYTHONPATH": str(self.code)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            text=True,
        )


@dataclass(frozen=True)
class Forks:
    """Jobs as forks of one process; `serve` is the other side."""

    server: subprocess.Popen

    def run(self, out: Path, *options: str, kill_after_s: float | None = None) -> int:
        """The exit code of a job; of one that was killed, the negative number of the signal."""
        assert self.server.stdin is not None and self.server.stdout is not None
        request = {"arguments": [str(out), *options], "kill_after_s": kill_after_s}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def to_the_end(self, out: Path, *options: str) -> None:
        """A job, undisturbed."""
        assert self.run(out, *options) == 0


def serve() -> None:
    """For each line of standard input fork a job, kill it in time if asked to, and print its exit code."""
    import numbers_pipeline

    from pipelines.core.fingerprint import reached_modules

    # What every job does first, once for all: Arrow imports pandas, the fingerprint parses the code.
    pipeline = numbers_pipeline.numbers_pipeline()
    pipeline.source.read(pipeline.source.plan("numbers")[0])
    reached_modules(pipeline)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            # Ends like any process, with 1 after an exception.
            numbers_pipeline.main(request["arguments"])
            return
        if request["kill_after_s"] is not None:
            time.sleep(request["kill_after_s"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def kill_group(process: subprocess.Popen, timeout_s: float = 60) -> None:
    """Kill a job and all that it has started, and wait until none of them is left."""
    session = session_of(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=timeout_s)
    deadline = time.monotonic() + timeout_s
    while session and time.monotonic() < deadline:
        session = {pid for pid in session if is_running(pid)}
        for pid in session:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert not session, f"still running: {session}"


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


def is_running(pid: int) -> bool:
    """True unless the process has ended or only waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


if __name__ == "__main__":
    serve()
