"""How fast a LAION build passes rows without the fetch, and how much memory it takes, at one and ten times the rows.

    python -m benchmarks.laion_rows --num-rows 1000000 10000000

Writes synthetic metadata, runs `emu build laion --dry-run` on it in a process of its own, and prints a line of JSON for
each number of rows: rows per second of wall time and of CPU time (children included), and the largest resident memory
of the process, which with the local runner is driver and worker in one.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

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


def measure(folder: Path, samples_per_shard: int) -> dict[str, float]:
    """Seconds, CPU-seconds and peak memory of a dry run over the files of a folder."""
    words = ["--metadata", f"{folder}/*.parquet", "--out", f"{folder}/out", "--runner", "local"]
    cuts = ["--cuts.max-punsafe", "0.5", "--cuts.max-pwatermark", "0.8", "--cuts.min-width", "256"]
    code = (
        "import resource, sys; from jobs.build_laion import main; status = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    more = ["--samples-per-shard", str(samples_per_shard), "--dry-run"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code, *words, *cuts, *more],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "peak_mb": round(int(ran.stdout.split()[-1]) / 1024),
    }


def main(arguments: Arguments) -> None:
    """Measure each number of rows."""
    for num_rows in arguments.num_rows:
        with tempfile.TemporaryDirectory(prefix="laion-rows-") as folder:
            write_rows(Path(folder), num_rows)
            found = measure(Path(folder), arguments.samples_per_shard)
        rates = {
            "rows_per_s": round(num_rows / found["wall_s"]),
            "rows_per_cpu_s": round(num_rows / found["cpu_s"]),
        }
        print(json.dumps({"num_rows": num_rows, **found, **rates}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
