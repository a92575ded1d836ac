"""A session with Ray: noise goes to a file, failures are one line. In a process of its own, without the tests' Ray."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from jobs.cluster import ClusterError, check_reachable

PROGRAM = """
import logging, os, sys
from pathlib import Path
from jobs.cluster import ClusterError, _ray_log, ray_session

logging.basicConfig(level=logging.INFO, format="%(message)s")
with _ray_log() as path:
    os.write(2, b"core_worker.cc: noise\\n")
    logging.info("a line of the log")
    print("a line of the job", file=sys.stderr)
    assert path.read_text() == "core_worker.cc: noise\\n"
path.unlink()
with _ray_log() as empty:
    pass
assert not empty.exists()
os.environ["EMU_RAY_START_S"] = "soon"
try:
    with ray_session():
        pass
except ClusterError as error:
    print(error)
"""


def test_noise_goes_to_a_file_and_a_wrong_time_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[:2] == ["a line of the log", "a line of the job"]
    assert "noise" not in done.stderr
    assert done.stdout == "EMU_RAY_START_S is 'soon', give a number of seconds\n"


@contextmanager
def listening(serve: Callable[[socket.socket], None] = lambda connection: None) -> Iterator[str]:
    """A server that does `serve` with one connection, and keeps it open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            connection, _ = server.accept()
            kept.append(connection)
            serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)
        for connection in kept:
            connection.close()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_an_address_where_no_ray_responds_is_one_line_at_once() -> None:
    port = unused_port()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ClusterError, match=r"no Ray at RAY_ADDRESS=.*refused.*unset RAY_ADDR"):
            check_reachable(address)
    with listening() as mute, pytest.raises(ClusterError, match="timed out"):
        check_reachable(mute, timeout_s=0.3)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    with pytest.raises(ClusterError, match="what listens there is not Ray"):
        check_reachable(f"127.0.0.1:{server.server_port}")
    server.server_close()
    with pytest.raises(ClusterError, match=r"Port out of range.*give HOST:6379"):
        check_reachable("127.0.0.1:700000")


def test_a_server_of_grpc_and_addresses_without_a_port_are_left_to_ray() -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0]))

    with listening(greet) as grpc:
        check_reachable(grpc)
        check_reachable("auto")
        check_reachable("local")


def test_a_job_ends_with_one_line_where_the_cluster_is_gone(tmp_path: Path) -> None:
    """Ray itself would try for minutes."""
    options = ["--runner=ray", f"--out={tmp_path / 'out'}", "--num-pairs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.build_pairs", *options],
        env=os.environ | {"RAY_ADDRESS": f"127.0.0.1:{unused_port()}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no Ray at RAY_ADDRESS=127.0.0.1:")
    assert "Traceback" not in done.stderr
