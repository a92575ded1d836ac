"""A child that hangs, crashes, leaks or loses its parent costs one body and no more."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.core.pipeline import Rejected
from pipelines.videos.process import BoundedProcess, DecodeLimits

WORK = "tests.videos.faults:faulty_work"
MEMORY = 256 << 20


def process(**limits: float) -> BoundedProcess:
    config = DecodeLimits(**{"max_seconds": 60.0, "max_memory_bytes": MEMORY} | limits)  # type: ignore[arg-type]
    return BoundedProcess(WORK, {"suffix": "ü"}, config)


def test_bodies_and_blobs_of_any_size_pass():
    with process() as child:
        for body in (b"", b"a\nb", os.urandom(5 << 20)):
            value, blobs = child.run(body)
            assert value["suffix"] == "ü"
            assert blobs == [body, b"", body[::-1]]


def test_what_the_work_says_arrives():
    with process() as child:
        with pytest.raises(Rejected, match="not_a_video: so it is"):
            child.run(b"reject")
        with pytest.raises(RuntimeError, match=r"(?s)faults\.py.*KeyError: 'bug'"):
            child.run(b"bug")
        assert child.run(b"print")[1][0] == b"print", "what is printed is no response"


@pytest.mark.parametrize("body", [b"sleep", b"sleep with the GIL", b"spin"])
def test_a_body_that_hangs_is_killed_and_the_next_is_worked_on(body: bytes):
    with process(max_seconds=1.0) as child:
        first = child.run(b"x")[0]["pid"]
        with pytest.raises(Rejected, match="video_timeout: limit 1 s"):
            child.run(body)
        assert not psutil.pid_exists(first)
        assert child.run(b"x")[0]["pid"] != first


@pytest.mark.parametrize(
    ("body", "detail"), [(b"segfault", "signal SIGSEGV"), (b"exit", "exit code 3")]
)
def test_a_crash_is_a_reason_and_the_next_body_is_worked_on(body: bytes, detail: str):
    with process() as child:
        with pytest.raises(Rejected, match=f"video_decoder_died: {detail}"):
            child.run(body)
        assert child.run(b"x")[1][0] == b"x"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of memory need Linux")
def test_memory_is_bounded_and_a_child_that_keeps_it_is_replaced():
    with process() as child:
        first = child.run(b"x")[0]["pid"]
        with pytest.raises(Rejected, match="video_out_of_memory"):
            child.run(b"allocate")
        assert child.run(b"x")[0]["pid"] == first, "nothing was kept"
        pids = [child.run(b"leak")[0]["pid"] for _ in range(4)]
        assert pids[0] == first and pids[-1] != first


def test_a_child_is_replaced_after_its_number_of_bodies():
    with process(clips_per_process=2) as child:
        pids = [child.run(b"x")[0]["pid"] for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_work_that_cannot_be_started_is_an_error_with_its_traceback():
    child = BoundedProcess(WORK, {"fails_to_start": True}, DecodeLimits())
    with pytest.raises(RuntimeError, match="LookupError: no such model"):
        child.run(b"x")


PARENT = """
import sys
from pipelines.videos.process import BoundedProcess, DecodeLimits
child = BoundedProcess("tests.videos.faults:faulty_work", {"suffix": ""}, DecodeLimits())
child.run(b"x")
print(child.pid, flush=True)
child.run(sys.argv[1].encode())
sys.stdin.read()
"""


@pytest.mark.parametrize("body", ["sleep", "sleep with the GIL", "x"])
def test_no_child_outlives_a_parent_that_is_killed(body: str):
    command = [sys.executable, "-c", PARENT, body]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin, parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)  # the body is on its way
        parent.kill()
        parent.wait()
        child.wait(timeout=30)
