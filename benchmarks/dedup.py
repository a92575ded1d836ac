"""Duplicates among synthetic signatures: rows per second, peak memory and disk, at several numbers of rows.

    python -m benchmarks.dedup --rows 1000000 10000000

For each number of rows and each kind a process of its own makes signatures of which 10% are duplicates (near ones: of
an image up to 4 bits away, of a text with 95% of its 128 values), gives them to the finder in shards of 1,000, and
takes the duplicates out. Prints a JSON line each: CPU seconds for taking in and for finding, peak anonymous memory of
the process (`/proc/self/status`, RssAnon, looked at every 50 ms: without mapped files), the same before the first row,
and bytes on disk. Making the signatures is not counted.
"""

import argparse
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from pipelines.dedup.candidates import NUM_PERMUTATIONS
from pipelines.dedup.finder import NEAR_IMAGE, NEAR_TEXT, DuplicateFinder

SHARD = 1000
DUPLICATES = 0.1


class Peak:
    """The most anonymous memory that this process has had, in bytes, and the most bytes in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder, self.memory, self.disk = folder, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.before = anonymous_bytes()
        self._thread.start()

    def _follow(self) -> None:
        number = 0
        while not self._over.wait(0.05):
            self.memory = max(self.memory, anonymous_bytes())
            number += 1
            if number % 20 == 0:
                self.disk = max(self.disk, folder_bytes(self.folder))

    def close(self) -> None:
        """End following."""
        self._over.set()
        self._thread.join()


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def folder_bytes(folder: str) -> int:
    """Bytes of all files."""
    total = 0
    for path in Path(folder).rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def shard_of(kind: str, number: int) -> pa.Array:
    """The signatures of a shard: each follows from the shard and the seed alone."""
    rng = np.random.default_rng([7, number])
    is_again = rng.random(SHARD) < (DUPLICATES if number else 0)
    earlier = rng.integers(0, max(1, number), SHARD)
    place = rng.integers(0, SHARD, SHARD)
    if kind == NEAR_TEXT:
        rows = np.arange(number * SHARD, (number + 1) * SHARD)
        own, again = text_signatures(rows), text_signatures(earlier * SHARD + place)
        is_taken = is_again[:, None] & (rng.random(own.shape) < 0.95)
        own = np.where(is_taken, again, own)
        return pa.array([r.tobytes() for r in own], pa.binary(4 * NUM_PERMUTATIONS))
    own = mixed_numbers(np.arange(number * SHARD, (number + 1) * SHARD, dtype=np.uint64))
    again = mixed_numbers((earlier * SHARD + place).astype(np.uint64))
    if kind == NEAR_IMAGE:
        for _ in range(4):
            again = again ^ (np.uint64(1) << rng.integers(0, 64, SHARD).astype(np.uint64))
    return pa.array(np.where(is_again, again, own), pa.uint64())


def text_signatures(rows: np.ndarray) -> np.ndarray:
    """The signatures of rows, `[N, 128]`."""
    numbers = rows[:, None].astype(np.uint64) * np.uint64(NUM_PERMUTATIONS)
    return (
        mixed_numbers(numbers + np.arange(NUM_PERMUTATIONS, dtype=np.uint64)) >> np.uint64(32)
    ).astype("<u4")


def mixed_numbers(values: np.ndarray) -> np.ndarray:
    """Pseudo-random numbers from numbers (SplitMix64)."""
    values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def measure(kind: str, num_rows: int) -> None:
    """One kind at one number of rows."""
    with TemporaryDirectory() as folder:
        finder = DuplicateFinder([kind], folder=folder)
        peak = Peak(folder)
        making = taking = 0.0
        for number in range(num_rows // SHARD):
            began = time.process_time()
            keys = pa.array(
                [f"synthetic-{n:09d}" for n in range(number * SHARD, (number + 1) * SHARD)]
            )
            column = shard_of(kind, number)
            made = time.process_time()
            finder.add(f"synthetic-{number:06d}", keys, {kind: column})
            making, taking = making + made - began, taking + time.process_time() - made
        began = time.process_time()
        num_found = sum(len(drops) for _, drops in finder.drops())
        finding = time.process_time() - began
        peak.close()
    print(
        json.dumps(
            {
                "kind": kind,
                "rows": num_rows,
                "duplicates_found": num_found,
                "taking_cpu_s": round(taking, 1),
                "finding_cpu_s": round(finding, 1),
                "rows_per_cpu_s": round(num_rows / (taking + finding)),
                "peak_mb": round(peak.memory / 1e6),
                "before_mb": round(peak.before / 1e6),
                "disk_mb": round(peak.disk / 1e6),
                "cpu_count": os.cpu_count(),
            }
        ),
        flush=True,
    )


def main() -> None:
    """Measure all that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["image", NEAR_IMAGE, NEAR_TEXT])
    options = parser.parse_args()
    for num_rows in options.rows:
        for kind in options.kinds:
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(kind, num_rows)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    main()
