"""The Ray that a job runs on: the cluster it was submitted to, or a local one of its own.

What Ray writes to standard error by itself goes to a log file, which is named at the end. Failures of Ray itself are
one line with a hint.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from jobs.progress import say

if TYPE_CHECKING:
    from pipelines.core.pipeline import ShardPlan
    from pipelines.core.stage_runner import Operator

log = logging.getLogger(__name__)

START_VARIABLE = "EMU_RAY_START_S"
START_S = 300.0
"""Seconds that a local Ray may take to start. Ray itself waits 30, which a busy machine exceeds."""
REACH_S = 5.0
"""Seconds in which a cluster has to respond to a first connection. Ray itself would try for minutes."""


class ClusterError(ConnectionError):
    """Ray could not be started or reached, or was lost; one line with a hint."""


@contextmanager
def ray_session(num_cpus: int | None = None, start_s: float | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of the block.

    Inside `ray job submit`, or where `RAY_ADDRESS` is set, that cluster is used and left running. Otherwise
    a local Ray is started (with `num_cpus`, by default all cores) and stopped at the end. A process that is
    already connected keeps its connection.

    Args:
        num_cpus: of a local Ray.
        start_s: seconds that its start may take; None: `EMU_RAY_START_S`, else `START_S`.

    Raises:
        ClusterError: Ray could not be started or reached, or was lost.
        ValueError: as of `cluster_address`.
    """
    import ray  # takes a second, and jobs in one process do not need it

    if ray.is_initialized():
        yield
        return
    address = cluster_address(os.environ)
    start_s = _start_s() if start_s is None else start_s
    with _ray_log() as path:
        say(f"connecting to Ray at {address}" if address else "starting a local Ray")
        with _explained(address, start_s, path, is_start=True):
            _connect(address, num_cpus, start_s)
        log.info("ray address=%s cpus=%s", address or "local", ray.cluster_resources().get("CPU"))
        try:
            with _explained(address, start_s, path):
                yield
        finally:
            ray.shutdown()


def cluster_address(environment: Mapping[str, str]) -> str | None:
    """The cluster to connect to by `RAY_ADDRESS`; None if it is not set.

    Raises ValueError for the address of a dashboard, which `ray job submit` takes from the same variable.
    """
    address = environment.get("RAY_ADDRESS")
    if address and address.lower().startswith(("http://", "https://")):
        raise ValueError(
            f"RAY_ADDRESS is {address}, the dashboard to which `ray job submit` sends jobs; a job that is started "
            "directly connects to HOST:6379 (or auto, on a machine of the cluster): set that, or submit the job"
        )
    return address


def _connect(address: str | None, num_cpus: int | None, start_s: float) -> None:
    import ray

    if address:
        check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        return
    with patient_start(start_s):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )


def check_reachable(address: str, timeout_s: float = REACH_S) -> None:
    """Raise `ClusterError` if no Ray responds at `HOST:PORT` or `ray://HOST:PORT`; other addresses are left to Ray."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClusterError(f"RAY_ADDRESS={address}: {error}; give HOST:6379") from error
    if host is None or port is None:
        return
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", "") and not _speaks_http2(connection):
                raise ConnectionError("what listens there is not Ray")
    except OSError as error:
        raise ClusterError(
            f"no Ray at RAY_ADDRESS={address} ({error}); start the cluster, or unset RAY_ADDRESS"
        ) from error


def _speaks_http2(connection: socket.socket) -> bool:
    """True where the other side greets as servers of gRPC do, by a frame of settings (RFC 9113, section 3.4)."""
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    head = b""
    while len(head) < len(settings):
        found = connection.recv(len(settings) - len(head))
        if not found:
            return False
        head += found
    return head[3] == settings[3]


def _start_s() -> float:
    text = os.environ.get(START_VARIABLE, "")
    try:
        return float(text) if text else START_S
    except ValueError as error:
        raise ClusterError(f"{START_VARIABLE} is {text!r}, give a number of seconds") from error


@contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Let the processes of a local Ray take so long to start.

    Ray gives each of them 30 seconds: its head by an environment variable, the agents of a node by another (the raylet
    then aborts), and the raylet without any option.
    """
    import psutil  # comes with Ray
    from ray._private import services

    get_node, deadline = cast(Any, services).get_node, time.monotonic() + seconds

    def patient(gcs_address: str, node_id: str) -> Any:
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:  # not registered yet
                children = psutil.Process().children()
                is_dead = any(c.name() == "raylet" and c.status() == "zombie" for c in children)
                if is_dead or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    waits = {
        "RAY_gcs_server_port_wait_time_s": str(max(30, int(seconds))),
        "RAY_agent_register_timeout_ms": str(max(30_000, int(1000 * seconds))),
        "RAY_raylet_start_wait_time_s": str(max(30, int(seconds))),
        # Workers of a Ray of our own are the work: at Ray's low priority they starve on a busy machine.
        "RAY_worker_niceness": "0",
    }
    added = {name: value for name, value in waits.items() if name not in os.environ}
    os.environ.update(added)
    services.get_node = patient
    try:
        yield
    finally:
        services.get_node = get_node
        for name in added:
            del os.environ[name]


@contextmanager
def _explained(
    address: str | None, start_s: float, path: Path, is_start: bool = False
) -> Iterator[None]:
    """Turn failures of Ray inside the block into `ClusterError`: at its start all, later those that Ray raises."""
    import ray
    from ray.exceptions import RayError

    try:
        yield
    except ClusterError:
        raise
    except Exception as error:
        is_lost = not ray.is_initialized() or type(error) is Exception
        if not (is_start or isinstance(error, RayError) or (is_lost and _comes_from_ray(error))):
            raise
        raise ClusterError(f"{_words(error, address, start_s)}; Ray's own log: {path}") from error


def _comes_from_ray(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("ray")


def _words(error: BaseException, address: str | None, start_s: float) -> str:
    lines = str(error).strip().splitlines()
    first = f"{type(error).__name__}: {lines[0] if lines else ''}".removeprefix("Exception: ")
    if address:
        return f"no Ray at RAY_ADDRESS={address} ({first}); start the cluster, or unset RAY_ADDRESS"
    if "timed out" in first.lower() or "startup" in first or "node" in first.lower():
        return (
            f"Ray did not start within {start_s:g} s ({first}); the machine is busy: end other work, or wait "
            f"longer with {START_VARIABLE}=SECONDS, or use --runner local where the job has it"
        )
    return (
        f"Ray failed ({first}); started again, the job resumes where it stopped. If it happens again, look whether "
        "memory or disk ran out"
    )


@contextmanager
def _ray_log() -> Iterator[Path]:
    """Send what libraries write to file descriptor 2 to a file, and keep `sys.stderr` and the log where they are."""
    handle, name = tempfile.mkstemp(prefix="emu-ray-", suffix=".log")
    path, before, stderr = Path(name), os.dup(2), sys.stderr
    try:
        is_plain = stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        is_plain = False
    shown = os.fdopen(os.dup(2), "w", buffering=1, errors="replace") if is_plain else stderr
    handlers = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is stderr]
    stderr.flush()
    sys.stderr = shown
    for handler in handlers:
        handler.setStream(shown)  # type: ignore[attr-defined]
    os.dup2(handle, 2)
    os.close(handle)
    try:
        yield path
    finally:
        sys.stderr = stderr
        for handler in handlers:
            handler.setStream(stderr)  # type: ignore[attr-defined]
        os.dup2(before, 2)
        os.close(before)
        if path.stat().st_size:
            log.info("ray_log=%s", path)
        else:
            path.unlink()


@dataclass(frozen=True)
class RunnerOnDemand:
    """A runner that connects to Ray when the first shard is to be built, so that a refused folder starts nothing."""

    sessions: ExitStack
    """Ends the session; the caller closes it."""
    num_cpus: int | None = None
    gpu_per_worker: bool = False
    """Give every worker one GPU where the cluster has any and the stage does not say how much it needs."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in the order of completion."""
        import ray

        from pipelines.core.run_ray import RayRunner

        self.sessions.enter_context(ray_session(self.num_cpus))
        if self.gpu_per_worker and ray.cluster_resources().get("GPU", 0) > 0:
            operators = [
                replace(o, resources=replace(o.resources, num_gpus=o.resources.num_gpus or 1))
                for o in operators
            ]
        return RayRunner().run(operators, shards)
