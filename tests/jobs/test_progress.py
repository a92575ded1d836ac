"""A job says what it does, and a bar that stands still is printed again."""

import io
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from tqdm import tqdm

from jobs.progress import Status, say

ROOT = Path(__file__).resolve().parents[2]
FAST = {"interval_s": 0.05, "first_s": 0.05, "poll_s": 0.01}


def wait_for(text: str, stream: io.StringIO, number: int) -> None:
    end = time.monotonic() + 30
    while stream.getvalue().count(text) < number:
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.01)


def test_it_speaks_at_a_change_and_again_and_again() -> None:
    stream = io.StringIO()
    with Status("loading", stream, **FAST):
        wait_for("[   0 s] loading\n", stream, 1)
        say("starting Ray")
        assert "starting Ray" in stream.getvalue()
        wait_for("starting Ray", stream, 3)
    size = len(stream.getvalue())
    say("over")
    assert len(stream.getvalue()) == size


def test_it_speaks_while_tqdm_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.std", ModuleType("tqdm.std"))
    stream = io.StringIO()
    with Status("importing", stream, **FAST):
        wait_for("importing", stream, 2)


def test_a_bar_that_stands_still_is_printed_again_and_takes_the_place_of_the_line() -> None:
    stream, shown = io.StringIO(), io.StringIO()
    with (
        Status("loading", stream, **FAST),
        tqdm(total=3, desc="shards", file=shown, mininterval=60),
    ):
        before = stream.getvalue()
        wait_for("shards", shown, 4)
        assert stream.getvalue() == before


def test_a_job_that_fails_at_once_prints_its_summary_and_one_line() -> None:
    code = (
        "import sys, time; from dataclasses import dataclass; from jobs import cli\n"
        "@dataclass(frozen=True)\n"
        "class Options:\n"
        "    'Options.'\n"
        "def work(options):\n"
        "    raise cli.JobError('no disk', 'half done')\n"
        "sys.exit(cli.run_job(Options, work, [], program='x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == "half done\n"
    assert done.stderr == "error: no disk\n"
