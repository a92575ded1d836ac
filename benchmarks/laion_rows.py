"""How fast a LAION build passes rows without the fetch, and how much memory it takes, at one and ten times the rows.

    python -m benchmarks.laion_rows --num-rows 1000000 10000000
    python -m benchmarks.laion_rows --num-rows 1000000 10000000 --runner ray

Writes synthetic metadata, runs `emu build laion --dry-run` on it, and prints a line of JSON for each number of rows:
seconds, and the peak memory by role: with the local runner one process is driver and worker, with Ray there is one
worker beside the driver. Peaks are the kernel's own high-water mark of each process (VmHWM). `ru_maxrss` is not: it
begins with the memory of the process that started it, and here that is the one which has written the rows. CPU time
(children included) is given for the local runner; that of Ray's processes is not the job's.
"""

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from benchmarks.memory import peaks_of

ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 250_000
WORDS = np.array(["a", "red", "old", "kettle", "house", "dog", "photo", "of", "on", "the"])


@dataclass(frozen=True)
class Arguments:
    """Measures the rows of a LAION build without its fetch."""

    num_rows: tuple[int, ...] = (100_000, 1_000_000)
    """Numbers of rows."""
    samples_per_shard: int = 10_000
    """Rows per shard."""
    runner: Literal["local", "ray"] = "local"
    """The runner of the job."""


def write_rows(folder: Path, num_rows: int) -> None:
    """Synthetic metadata in the joined form, in files of a million rows."""
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        count = min(ROWS_PER_FILE, num_rows - start)
        rng = np.random.default_rng(number)
        picked = WORDS[rng.integers(len(WORDS), size=(count, 8))]
        scores = {n: rng.random(count, np.float32) for n in ("punsafe", "pwatermark")}
        table = {
            "URL": [f"http://h{n % 9973}.example/{start + n}.jpg" for n in range(count)],
            "TEXT": [" ".join(words) for words in picked],
            "WIDTH": rng.integers(50, 2000, count).astype(float),
            "HEIGHT": rng.integers(50, 2000, count).astype(float),
            "similarity": rng.uniform(0.28, 0.5, count),
            "hash": rng.integers(-(2**62), 2**62, count),
            **scores,
        }
        path = folder / f"part-{number:05d}.snappy.parquet"
        pq.write_table(pa.table(table), path, row_group_size=ROWS_PER_GROUP)


def measure(folder: Path, num_rows: int, arguments: Arguments) -> dict[str, Any]:
    """Seconds and peak memory of a dry run over the files of a folder."""
    command = [sys.executable, "-m", "jobs.build_laion", "--dry-run", "--out", f"{folder}/out"]
    command += ["--metadata", f"{folder}/*.parquet", "--runner", arguments.runner]
    command += ["--cuts.max-punsafe", "0.5", "--cuts.max-pwatermark", "0.8"]
    command += ["--cuts.min-width", "256"]
    command += ["--samples-per-shard", str(arguments.samples_per_shard)]
    if arguments.runner == "ray":
        command += ["--num-cpus", "1"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    peak_mb = peaks_of(command)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"num_rows": num_rows, "runner": arguments.runner, "wall_s": round(wall_s, 1)}
    if arguments.runner == "local":
        found |= {"cpu_s": round(cpu_s, 1), "rows_per_cpu_s": round(num_rows / cpu_s)}
    return {**found, "rows_per_s": round(num_rows / wall_s), "peak_mb": peak_mb}


def main(arguments: Arguments) -> None:
    """Measure each number of rows."""
    for num_rows in arguments.num_rows:
        with tempfile.TemporaryDirectory(prefix="laion-rows-") as folder:
            write_rows(Path(folder), num_rows)
            print(json.dumps(measure(Path(folder), num_rows, arguments)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
