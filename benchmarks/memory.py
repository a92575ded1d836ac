"""Peak memory of an MMC4 build over N documents and over 10 N: it must not grow with their number.

    python -m benchmarks.memory --runner local
    python -m benchmarks.memory --runner ray --num-documents 200

Prints JSON lines: `peak_mb` by role, from the kernel's own high-water mark of each process (VmHWM), read
five times a second. The images of a synthetic world are served from this process, which is not counted.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import write_mmc4
from pipelines.miniworld.server import ImageServer

_PERIOD_S = 0.2


@dataclass(frozen=True)
class MemoryBenchmark:
    """Builds a dataset of N documents and one of N times `growth`, and prints the peak memory of both."""

    runner: Literal["local", "ray"] = "local"
    """The runner of the build job."""
    num_documents: int = 400
    """Documents of the small build."""
    growth: int = 10
    """Ratio of the sizes of the two builds."""
    samples_per_shard: int = 100
    """Documents per shard: memory depends on this, not on the total number of documents."""


def run_benchmark(options: MemoryBenchmark) -> Iterator[dict[str, Any]]:
    """One record per build: documents, images, seconds, peak memory by role in MB."""
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_mmc4(MiniworldConfig(num_documents=200, num_shards=1, bad_share=0), world)
        with ImageServer(world / "images") as server:
            for factor in (1, options.growth):
                documents = Path(folder) / f"docs_{factor}.jsonl"
                _repeat(next((world / "documents").iterdir()), documents, options, factor)
                yield _measure(options, documents, Path(folder) / f"out_{factor}", server)


def _repeat(source: Path, target: Path, options: MemoryBenchmark, factor: int) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    with target.open("wb") as file:
        for number in range(options.num_documents * factor):
            file.write(lines[number % len(lines)])


def _measure(
    options: MemoryBenchmark, documents: Path, out: Path, server: ImageServer
) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.build_mmc4", "--runner", options.runner]
    command += ["--documents", str(documents), "--out", str(out)]
    command += ["--samples-per-shard", str(options.samples_per_shard)]
    command += ["--fetch.allow-host", server.allow_host, "--fetch.per-host", "64"]
    began = time.monotonic()
    peak_mb = peaks_of(command)
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "benchmark": "memory",
        "runner": options.runner,
        "num_documents": manifest["records"]["total"],
        "num_images": manifest["links"]["kept"],
        "num_shards": len(manifest["shards"]),
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": peak_mb,
    }


def peaks_of(command: list[str]) -> dict[str, int]:
    """Run a job to its end and return its peak memory by role (driver, worker, a process of Ray), in MB."""
    peaks: dict[int, tuple[str, int]] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peaks |= _peaks(process.pid)
            time.sleep(_PERIOD_S)
    if process.returncode:
        raise RuntimeError(f"the build ended with exit code {process.returncode}: {command}")
    by_role: dict[str, list[int]] = {}
    for role, peak in peaks.values():
        by_role.setdefault(role, []).append(peak)
    return {role: round(max(values) * 1024 / 1e6) for role, values in sorted(by_role.items())}


def _peaks(root: int) -> dict[int, tuple[str, int]]:
    """Role and peak memory in kB of a process and its descendants."""
    parents, found = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            status = _status(folder)
            parents[int(folder.name)] = int(status.get("PPid", "0"))
            if "VmHWM" in status:
                found[int(folder.name)] = (status["Name"], int(status["VmHWM"].split()[0]))
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return {
        pid: ("driver" if pid == root else _role(name), peak)
        for pid, (name, peak) in found.items()
        if pid in family
    }


def _role(name: str) -> str:
    return "worker" if name.startswith("ray::") else f"ray {name}"


def _status(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


if __name__ == "__main__":
    for record in run_benchmark(tyro.cli(MemoryBenchmark)):
        print(json.dumps(record), flush=True)
