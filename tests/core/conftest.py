"""Fixtures of the engine's tests."""

import pytest
from engine_jobs import Job, snapshot


@pytest.fixture(scope="session")
def job(repository, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The small pipeline as a job on a copy of the code as it is now."""
    return Job(snapshot(repository, tmp_path_factory.mktemp("code")))
