"""Peak memory of a run does not grow with the number of shards."""

import os
from pathlib import Path

import pytest
from engine_jobs import Job


def peak_bytes(job: Job, out: Path, num_records: int) -> int:
    process = job.start(out, "--records", str(num_records))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.communicate()[1]
    return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_peak_memory_is_flat_in_the_number_of_shards(job: Job, tmp_path: Path) -> None:
    few = peak_bytes(job, tmp_path / "few", 150)
    many = peak_bytes(job, tmp_path / "many", 3000)
    assert many < 1.15 * few, (few, many)
