"""Fixtures of the engine's tests."""

from collections.abc import Iterator

import pytest
from engine_jobs import Forks, Job, snapshot


@pytest.fixture(scope="session")
def job(repository, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The small pipeline as a job on a copy of the code as it is now."""
    return Job(snapshot(repository, tmp_path_factory.mktemp("code")))


@pytest.fixture(scope="session")
def forks(job: Job) -> Iterator[Forks]:
    """That job, forked from one process which starts it in milliseconds."""
    with job.forks() as found:
        yield found
