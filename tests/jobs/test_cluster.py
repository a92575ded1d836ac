"""A session with Ray: noise goes to a file, failures are one line. In a process of its own, without the tests' Ray."""

import subprocess
import sys

PROGRAM = """
import logging, os, sys
from pathlib import Path
from jobs.cluster import ClusterError, _ray_log, ray_session

logging.basicConfig(level=logging.INFO, format="%(message)s")
with _ray_log() as path:
    os.write(2, b"core_worker.cc: noise\\n")
    logging.info("a line of the log")
    print("a line of the job", file=sys.stderr)
    assert path.read_text() == "core_worker.cc: noise\\n"
path.unlink()
with _ray_log() as empty:
    pass
assert not empty.exists()
os.environ["EMU_RAY_START_S"] = "soon"
try:
    with ray_session():
        pass
except ClusterError as error:
    print(error)
"""


def test_noise_goes_to_a_file_and_a_wrong_time_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[:2] == ["a line of the log", "a line of the job"]
    assert "noise" not in done.stderr
    assert done.stdout == "EMU_RAY_START_S is 'soon', give a number of seconds\n"
