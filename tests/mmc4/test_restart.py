"""The job against kills and on Ray: the same bytes as one undisturbed local run."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.core.run_ray import RayRunner
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import write_mmc4
from pipelines.miniworld.server import ImageServer
from tests.mmc4.pages import build


def contents(out: Path) -> dict[str, bytes]:
    """All files of a finished dataset by path."""
    files = (p for p in out.rglob("*") if p.is_file() and ".work" not in p.parts)
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def finish(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_local_and_ray_give_the_same_bytes(tmp_path: Path, local_ray: None):
    write_mmc4(MiniworldConfig(num_documents=40, bad_share=0.3), tmp_path / "world")
    documents = tmp_path / "world/documents/*"
    found = []
    for name, runner in (("local", None), ("ray", RayRunner())):
        with ImageServer(tmp_path / "world/images", retry_after_s=0) as server:
            build(documents, tmp_path / name, server, samples_per_shard=15, runner=runner)
        found.append(contents(tmp_path / name))
    assert set(found[0]) == set(found[1])
    assert [n for n in found[0] if found[0][n] != found[1][n]] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_killed_anywhere_and_started_again_ends_in_the_same_bytes(
    tmp_path: Path, sample_data: Path, photos: str, repository: Path
):
    def command(out: str) -> list[str]:
        return [
            *(sys.executable, "-m", "jobs.build_mmc4", "--runner", "local"),
            *("--documents", str(sample_data / "mmc4/*"), "--out", str(tmp_path / out)),
            *("--samples-per-shard", "20", "--min-similarity", "0.24"),
            *("--fetch.allow-host", f"images.example={photos}", f"www.hfitinfo.com={photos}"),
        ]

    began = time.monotonic()
    finish(command("whole"), repository)
    length_s = time.monotonic() - began
    generator = random.Random(7)
    num_killed = 0
    for _ in range(12):
        with subprocess.Popen(
            command("killed"),
            cwd=repository,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                process.wait(length_s * generator.uniform(0.3, 0.9))
            except subprocess.TimeoutExpired:
                process.kill()
                num_killed += 1
            else:  # it has ended: the next one begins anew
                shutil.rmtree(tmp_path / "killed")
    assert num_killed > 3
    finish(command("killed"), repository)
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert set(whole) == set(killed)
    assert [name for name in whole if whole[name] != killed[name]] == []
