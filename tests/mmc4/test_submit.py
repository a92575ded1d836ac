"""The job under `ray job submit`, on a cluster of its own: real documents and photos, both forms of submission."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.manifest import manifest_from_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RAY = Path(sys.executable).parent / "ray"
NUM_ATTEMPTS = 3


@dataclass(frozen=True)
class Cluster:
    """A running head node: where jobs are submitted, and the environment of its clients."""

    address: str
    environment: Mapping[str, str]

    def submit(self, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
        """Submit a job and wait for its end."""
        command = [str(RAY), "job", "submit", "--address", self.address, *map(str, arguments)]
        return subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False
        )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray puts sockets below it
    environment = {
        **os.environ,
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment.pop("RAY_ADDRESS", None)
    port = free_port()
    options = {
        "--port": free_port(),
        "--dashboard-port": port,
        "--dashboard-agent-listen-port": free_port(),
        "--temp-dir": folder,
        "--num-cpus": 4,
    }
    flat = [str(part) for option in options.items() for part in option]
    command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats", *flat]
    head = start(command, folder, environment)
    try:
        yield Cluster(f"http://127.0.0.1:{port}", environment)
    finally:
        head.terminate()  # the head ends the processes that it started
        head.wait(120)
        shutil.rmtree(folder, ignore_errors=True)


def start(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A head node that has started; on a busy machine Ray's own 30 seconds may take some attempts."""
    log = folder / "head.log"
    for _ in range(NUM_ATTEMPTS):
        with log.open("wb") as file:
            head = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        if has_started(log, head):
            return head
    pytest.fail(f"no cluster in {NUM_ATTEMPTS} attempts: {log.read_text()[-2000:]}")


def has_started(log: Path, head: subprocess.Popen[bytes]) -> bool:
    while head.poll() is None:
        if b"Ray runtime started" in log.read_bytes():
            return True
        time.sleep(0.5)
    return False


def options(sample_data: Path, photos: str, out: Path) -> list[str]:
    return [
        *("--documents", str(sample_data / "mmc4/*")),
        *("--out", str(out), "--min-similarity", "0.24", "--samples-per-shard", "100"),
        *("--fetch.allow-host", f"images.example={photos}", f"www.hfitinfo.com={photos}"),
    ]


def test_real_documents_under_ray_job_submit(
    cluster: Cluster, tmp_path: Path, sample_data: Path, photos: str, repository: Path
):
    sent = cluster.submit(
        *("--working-dir", ".", "--", "python", "jobs/build_mmc4.py"),
        *options(sample_data, photos, tmp_path / "sent"),
        folder=repository,
    )
    assert sent.returncode == 0, sent.stdout[-3000:] + sent.stderr[-3000:]
    installed = cluster.submit(
        *("--", repository / "jobs/build_mmc4.py"),
        *options(sample_data, photos, tmp_path / "installed"),
        folder=tmp_path,
    )
    assert installed.returncode == 0, installed.stdout[-3000:] + installed.stderr[-3000:]
    manifest, other = (
        manifest_from_json((tmp_path / n / "manifest.json").read_text())
        for n in ("sent", "installed")
    )
    assert manifest.shards == other.shards  # with the hashes of the tars
    assert (manifest.records, manifest.links) == (other.records, other.links)
    assert (manifest.records.total, manifest.records.kept) == (481, 428)
    assert (manifest.links.total, manifest.links.kept) == (1523, 1062)


def test_a_relative_out_is_refused_where_ray_would_delete_it(
    cluster: Cluster, sample_data: Path, photos: str, repository: Path
):
    refused = cluster.submit(
        *("--working-dir", ".", "--", "python", "jobs/build_mmc4.py"),
        *options(sample_data, photos, Path("out")),
        folder=repository,
    )
    assert refused.returncode != 0
    assert "absolute path" in " ".join(refused.stdout.replace("│", "").split())
