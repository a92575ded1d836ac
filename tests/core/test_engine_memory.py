"""Memory of a run does not grow with the number of shards, but for the few bytes that the manifest has of each."""

import tracemalloc
from pathlib import Path

import pytest
from engine_jobs import Job
from numbers_pipeline import NumberSource, numbers_pipeline

from pipelines.core.run import run
from pipelines.core.storage import Storage
from pipelines.core.validate import check_dataset


def peak_bytes(job: Job, out: Path, num_records: int) -> int:
    """The kernel's high-water mark of the process; `ru_maxrss` would include that of the tests, which started it."""
    process = job.start(out, "--records", str(num_records))
    status, errors = process.communicate()
    assert process.returncode == 0, errors
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_peak_memory_is_flat_in_the_number_of_shards(job: Job, tmp_path: Path) -> None:
    few = peak_bytes(job, tmp_path / "few", 150)
    many = peak_bytes(job, tmp_path / "many", 3000)
    assert many < 1.15 * few, (few, many)


def traced_peak(out: Path, source: NumberSource) -> int:
    """The most that Python has allocated while a finished dataset is checked, in bytes."""
    plan = source.plan("numbers")
    storage = Storage(str(out))
    tracemalloc.start()
    try:
        facts = check_dataset(storage, plan)
        assert len(facts.entries) == len(facts.ranges) == len(plan)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_the_check_of_a_dataset_keeps_little_of_each_shard(tmp_path: Path) -> None:
    """An entry and two keys, not the counts of all stages, and no task that waits."""
    sources = {n: NumberSource(n, 1) for n in (20, 120)}
    for num_shards, source in sources.items():
        run(numbers_pipeline(source), str(tmp_path / f"{num_shards}"), progress=False)
    few, _, many = (traced_peak(tmp_path / f"{n}", sources[n]) for n in (20, 20, 120))
    assert (many - few) / 100 < 2000, (few, many)
