"""Memory of a fetcher in a process of its own, against bodies without end and bombs."""

import json
import subprocess
import sys

from tests.servers.misbehaviour import endless, misbehaviours
from tests.servers.web import WebServer, response

MIB = 1 << 20

PROGRAM = """
import json, pathlib, sys
from pipelines.download.fetcher import FetchConfig, Fetcher
from pipelines.images.normalise import ImageConfig, normalise_image

def peak():
    # Of this process; ru_maxrss would include the tests, which started it.
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

allow, rounds = sys.argv[1], int(sys.argv[2])
paths = ["/endless.jpg", "/gzip-bomb.jpg", "/bomb.png", "/large.jpg", "/huge.jpg"]
config = FetchConfig(allow_host=(allow,), max_bytes=4 << 20, body_budget_bytes=8 << 20, per_host=64)
urls = [f"http://images.example{path}" for path in paths] * rounds
with Fetcher(config) as fetcher:
    fetcher.fetch_many(["http://images.example/good.jpg"], lambda _, b: normalise_image(b, ImageConfig()))
    before = peak()
    results = fetcher.fetch_many(urls, lambda _, body: normalise_image(body, ImageConfig()).width)
print(json.dumps({"grown": peak() - before, "reasons": [result.reason for result in results]}))
"""


def test_memory_does_not_grow_with_what_servers_send(photo: bytes) -> None:
    """200 MiB are sent; without the budget of 8 MiB, dozens of bodies of 4 MiB would be in flight."""
    rounds = 24
    handlers = {
        **misbehaviours(photo),
        "/endless.jpg": endless,
        "/large.jpg": response(200, bytes(4 * MIB)),
    }
    with WebServer(handlers) as server:
        finished = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.allow(), str(rounds)],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    said = json.loads(finished.stdout)
    reasons = ["body_too_large", "body_too_large", "image_too_many_pixels", "not_an_image"]
    assert said["reasons"] == [*reasons, "body_too_large"] * rounds
    assert said["grown"] < 96 * MIB
