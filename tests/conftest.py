"""Fixtures that all parts share: sample data, one local Ray a session."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine
# Ray gives its workers the lowest priority but four: on a busy machine they take minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell starts jobs in the background with SIGINT ignored; tests of Ctrl-C need it, here and in their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes depends on the machine
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real inputs beside the repository, where there is one."""
    folder = Path(os.environ.get("EMU_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder shared/ beside the repository (or in EMU_SHARED)")
    return folder


@pytest.fixture(scope="session")
def sample_data(shared: Path) -> Path:
    """Real inputs: `shared/sample_data`."""
    folder = shared / "sample_data"
    if not folder.is_dir():
        pytest.skip("no folder shared/sample_data beside the repository")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a local server that speaks S3, with which the environment of all processes agrees."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """The address of an empty bucket."""
    import s3fs

    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for the whole session of tests, with logical CPUs to spare."""
    import ray

    from jobs.cluster import START_S, patient_start

    with patient_start(START_S):
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            namespace="tests",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
    yield
    ray.shutdown()
