#!/usr/bin/env python3
"""Serve a trained model over HTTP: OpenAI's chat completions with text and images, and a small page.

    python jobs/serve.py --model runs/tiny/model --port 8000
    curl http://127.0.0.1:8000/v1/models

Starts a local Ray when run alone, uses the cluster under `ray job submit`; runs until Ctrl-C.
"""

from __future__ import annotations

import inspect
import logging
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tyro
from ray import serve
from ray.exceptions import RayError

from emu.decoders import read_image_multiple
from emu.serve.app import ServeOptions, build_app
from emu.serve.requests import Fetch
from emu.serve.schema import Limits
from emu.weights.layout import DECODER, read_config
from jobs.cli import start_logging
from jobs.cluster import ray_session
from jobs.paths import refuse_address
from pipelines.download.config import FetchConfig
from pipelines.download.fetcher import Fetcher

APPLICATION = "emu"
log = logging.getLogger("serve")


@dataclass(frozen=True)
class ServeJob:
    """Serves a trained model over HTTP: OpenAI's chat completions with text and images, and a small page.

    A first try, with a model that jobs/train_emu.py trained:
        jobs/serve.py --model run/model

    Open the printed address in a browser, or give it to any OpenAI client as its base URL (ending in /v1):
        curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
            -d '{"messages": [{"role": "user", "content": "a red circle"}]}'

    Two copies on the GPUs of a cluster:
        ray job submit --working-dir . -- python jobs/serve.py --model /shared/emu --device cuda \\
            --dtype bfloat16 --num-gpus 1 --num-replicas 2

    Runs until Ctrl-C. Alone it starts a Ray of its own; under `ray job submit` it uses the cluster.
    """

    model: str
    """Folder with config.json, model.safetensors (or its pieces), tokenizer.model and, for drawing, decoder/."""
    name: str | None = None
    """The name that callers put into `model`. None: the folder's own."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is for this machine alone; 0.0.0.0 lets everyone in.
    Nothing here asks for a key: put a proxy in front that does."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    device: str = "cpu"
    """cpu or cuda. With cuda, give --num-gpus too."""
    dtype: str = "float32"
    """float32, bfloat16 or float16. bfloat16 halves the memory on a GPU."""
    num_replicas: int = 1
    """Copies of the model, each in a process of its own."""
    num_cpus: float = 1
    """Cores that Ray reserves for each replica."""
    num_gpus: float = 0
    """GPUs that Ray reserves for each replica; a fraction lets replicas share one."""
    requests_per_replica: int = 4
    """Requests that a replica works on at the same time; more share its speed."""
    requests_waiting: int = 64
    """Requests that may wait for a replica; those beyond get status 503 at once."""
    fetch_images: bool = False
    """Fetch images whose address is http(s). Off by default: who fetches for strangers must mean to.
    Private and local addresses are refused in any case."""
    limits: Limits = field(default_factory=Limits)
    """What one request may ask for at most."""
    fetch: FetchConfig = field(
        default_factory=lambda: FetchConfig(deadline_s=20, retries=1, max_bytes=10 * 1024 * 1024)
    )
    """Limits and politeness of fetching, with --fetch-images."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until a signal; gives the exit status."""
    start_logging()
    job = tyro.cli(
        ServeJob, args=arguments, description=inspect.getdoc(ServeJob), prog="jobs/serve.py"
    )
    try:
        options = serve_options(job)
        read_config(Path(job.model))
        read_image_multiple(Path(job.model) / DECODER)
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    with ray_session():
        return run(job, options, stop_on_signals())


def stop_on_signals() -> threading.Event:
    """Set at the first Ctrl-C or SIGTERM; a second one ends the process at once.

    To be called after `ray.init`, which sets handlers of its own.
    """
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def serve_options(job: ServeJob) -> ServeOptions:
    """The part of the command line that concerns the application."""
    refuse_address(job.model)
    if not 0 <= job.port < 65536:
        raise ValueError(f"--port is {job.port}, give 0 to 65535")
    if job.device != "cpu" and job.num_gpus == 0:
        raise ValueError(f"--device {job.device} with --num-gpus 0: Ray hides GPUs not asked for")
    return ServeOptions(
        model=Path(job.model).expanduser().resolve(),
        name=job.name,
        device=job.device,
        dtype=job.dtype,
        num_replicas=job.num_replicas,
        num_cpus=job.num_cpus,
        num_gpus=job.num_gpus,
        requests_per_replica=job.requests_per_replica,
        requests_waiting=job.requests_waiting,
        limits=job.limits,
    )


def open_fetcher(config: FetchConfig) -> Fetch:
    """Images from the web through the guarded fetcher, each with the reason where there is none."""
    fetcher = Fetcher(config)

    def fetch(urls: Sequence[str]) -> list[bytes | str]:
        return [
            each.body if each.body is not None else f"{each.reason} {each.detail or ''}".strip()
            for each in fetcher.fetch_many(urls)
        ]

    return fetch


def run(job: ServeJob, options: ServeOptions, stop: threading.Event) -> int:
    """Starts the application, waits for `stop`, takes the application away again."""
    port = job.port or free_port(job.host)
    app = build_app(options, partial(open_fetcher, job.fetch) if job.fetch_images else None)
    try:
        serve.start(http_options={"host": job.host, "port": port})
        serve.run(app, name=APPLICATION, route_prefix="/")
        url = f"http://{'127.0.0.1' if job.host == '0.0.0.0' else job.host}:{port}"
        if not answers(url):
            log.warning("address=%s answers=no hint=a Serve that ran before keeps its port", url)
        print(f"ready: {url}/ (page), {url}/v1 (API)", flush=True)
        stop.wait()
        print("stopping", flush=True)
    except (RuntimeError, RayError) as error:
        last_line = str(error).strip().splitlines()[-1]
        print(f"serve: {last_line}", *what_failed(), sep="\n", file=sys.stderr)
        return 1
    finally:
        serve.delete(APPLICATION)
    return 0


def what_failed() -> list[str]:
    """What the deployments of the application say of themselves."""
    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments if application else {}
    return [f"{name}: {each.message}" for name, each in deployments.items() if each.message]


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]


def answers(url: str, timeout_s: float = 10) -> bool:
    """Whether the health check at the address answers."""
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=timeout_s) as response:
            return response.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
