"""The README is run as a newcomer would run it (slow)."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.documents import blocks, lines

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_of_the_readme_run_from_the_first_to_the_last(tmp_path: Path) -> None:
    block = next(b for b in blocks(ROOT / "README.md") if "jobs/build_mmc4.py" in b)
    steps = [x for x in lines(block) if x and not x.startswith(("#", "source"))]
    environment = dict(os.environ, PATH=f"{ROOT / '.venv/bin'}:{os.environ['PATH']}")
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    serving: list[subprocess.Popen[bytes]] = []
    try:
        for line in steps:
            runs_on = line.rstrip().endswith("&") or "jobs/serve.py" in line
            command = "exec " + line.rstrip(" &") if runs_on else line
            process = subprocess.Popen(command, shell=True, cwd=tmp_path, env=environment)
            if runs_on:
                serving.append(process)
                _wait(8000 if "serve.py" in line else 8123, process)
            else:
                assert process.wait(timeout=600) == 0, line
        answer = subprocess.run(steps[-1], shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert '"image_url"' in answer.stdout, answer.stdout[:500]
    finally:
        for process in serving:
            process.terminate()
            process.wait(timeout=60)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until something answers HTTP at the port."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, "the process ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"nothing answers at port {port}")
