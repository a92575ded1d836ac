"""The quickstart of the README is run as a newcomer would paste it (slow)."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.documents import blocks

ROOT = Path(__file__).resolve().parents[1]
TRAINED, DEMO = "runs/tiny/model", "demo_out/run/model"


def block_with(command: str) -> str:
    """The one block of the README that holds a command."""
    [block] = [b for b in blocks(ROOT / "README.md") if command in b]
    return block


def paste(script: str, folder: Path) -> str:
    """What a shell prints for the lines of a script, which must all succeed; background jobs end with it."""
    environment = dict(os.environ, PATH=f"{ROOT / '.venv/bin'}:{os.environ['PATH']}")
    command = ["bash", "-e", "-m", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n{script}"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_the_quickstart_runs_from_the_first_line_to_the_last(tmp_path: Path) -> None:
    """The steps one by one; then the lines that serve a model, with the model that the steps have trained."""
    paste(block_with("emu build mmc4"), tmp_path)
    assert (tmp_path / "data/mmc4/report.html").is_file()
    serving = block_with("emu serve")
    assert DEMO in serving and "source .venv/bin/activate\n" in serving
    lines = serving.replace(DEMO, TRAINED).replace("source .venv/bin/activate\n", "")
    assert '"image_url"' in paste(lines, tmp_path)
