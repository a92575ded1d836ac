#!/usr/bin/env python3
"""Serves a trained model over HTTP: OpenAI's chat completions with text and images, and a chat page.

    emu serve --model runs/tiny/model --port 8000
    curl http://127.0.0.1:8000/v1/models

Starts a local Ray, or uses the cluster under `ray job submit`; runs until Ctrl-C.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emu.serve.limits import Limits
from jobs.cli import JobError, checked_options, run_job
from jobs.paths import check_port, free_port, refuse_address
from jobs.progress import say, say_importing
from pipelines.download.config import FetchConfig

if TYPE_CHECKING:
    from emu.serve.media import Fetch
    from emu.serve.options import ServeOptions

APPLICATION = "emu"
PROXY_START = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
"""Seconds that Ray Serve's proxy may take to start; Ray's 5 are too few on a busy machine."""
FLUSH_S = 0.5
log = logging.getLogger("serve")


@dataclass(frozen=True)
class ServeJob:
    """Serves a trained model over HTTP: OpenAI's chat completions with text and images, and a chat page.

    For example, with a model trained by emu train:
        emu serve --model run/model

    Open the printed address in a browser, or use it as the base URL of any OpenAI client (ending in /v1):
        curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
            -d '{"messages": [{"role": "user", "content": "a red circle"}]}'

    Two copies on the GPUs of a cluster:
        ray job submit --working-dir . -- python jobs/serve.py --model /shared/emu --device cuda \\
            --dtype bfloat16 --num-gpus 1 --num-replicas 2

    Runs until Ctrl-C, on a local Ray, or on the cluster under `ray job submit`.
    """

    model: str
    """Folder with config.json, model.safetensors (or its shards), tokenizer.model and, for images, decoder/."""
    name: str | None = None
    """Value of `model` in requests. None: the name of the folder."""
    host: str = "127.0.0.1"
    """Address to listen on. The default accepts connections from this machine only.
    0.0.0.0 accepts connections from everywhere and requires --api-keys or --allow-anyone."""
    port: int = 8000
    """Port to listen on. 0: choose a free port and print it."""
    device: str = "cpu"
    """cpu or cuda. With cuda, also give --num-gpus."""
    dtype: str = "float32"
    """float32, bfloat16 or float16. bfloat16 halves the memory on a GPU."""
    weights: Literal["full", "int8"] = "full"
    """full or int8. int8 stores the weights of the language model's layers in 8 bits. It excludes --adapters."""
    adapters: dict[str, Path] = field(default_factory=dict)
    """LoRA adapters saved by emu train-instruct, as --adapters NAME FOLDER. Requests select one by MODEL:NAME."""
    api_keys: Path | None = None
    """TOML file of API keys, with the hash, rate and number of parallel requests of each (see docs/serving.md)."""
    allow_anyone: bool = False
    """Allow a --host that other machines reach without API keys."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API from a browser, such as https://app.example. *: all origins."""
    num_replicas: int = 1
    """Copies of the model, each in its own process. With --max-replicas, the minimum number of copies."""
    max_replicas: int | None = None
    """Maximum number of copies. Ray Serve starts and stops copies according to the number of requests."""
    num_cpus: float = 1
    """CPU cores reserved for each replica."""
    num_gpus: float = 0
    """GPUs reserved for each replica. A fraction lets replicas share one."""
    requests_per_replica: int = 4
    """Requests that a replica handles at the same time, in one batch."""
    requests_waiting: int = 64
    """Requests that may wait for a replica. Further requests get status 503 immediately."""
    drain_s: float = 30
    """Seconds that running requests have to finish after Ctrl-C or SIGTERM. New requests get 503 meanwhile."""
    fetch_images: bool = False
    """Fetch images given by http(s) address. Off by default, because clients then choose what the server requests.
    Private and local addresses are always refused."""
    limits: Limits = field(default_factory=Limits)
    """Upper limits of one request, and of all requests together."""
    fetch: FetchConfig = field(
        default_factory=lambda: FetchConfig(deadline_s=20, retries=1, max_bytes=10 * 1024 * 1024)
    )
    """Limits and politeness of --fetch-images."""


def serve_model(job: ServeJob) -> None:
    """Serve until a signal."""
    from emu.decoders import read_image_multiple
    from emu.weights.layout import DECODER, read_config

    with checked_options():
        options = serve_options(job)
        check_access(job)
        read_config(Path(job.model))
        read_image_multiple(Path(job.model) / DECODER)
        if "RAY_ADDRESS" not in os.environ:  # on a cluster, Ray Serve may listen there already
            check_port(job.host, job.port)
    say_importing("ray")
    from jobs.cluster import ray_session

    say("starting Ray")
    os.environ.setdefault(PROXY_START, "60")
    with ray_session():
        say("loading the model")
        run(job, options, stop_on_signals())


def stop_on_signals() -> threading.Event:
    """An event set at the first Ctrl-C or SIGTERM; a second signal ends the process at once.

    Call it after `ray.init`, which installs its own handlers.
    """
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def check_access(job: ServeJob) -> None:
    """Raises ValueError if anyone would reach the server unasked, or its file of keys is wrong."""
    from emu.serve.keys import load_keys

    if job.api_keys is not None:
        load_keys(job.api_keys.expanduser())
        return
    if is_loopback(job.host):
        return
    if not job.allow_anyone:
        raise ValueError(
            f"--host {job.host} without --api-keys would let everyone who reaches it send requests; give "
            "--api-keys FILE, or --allow-anyone behind a proxy that authenticates"
        )
    log.warning("api_keys=none host=%s hint=everyone who reaches it may send requests", job.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_options(job: ServeJob) -> ServeOptions:
    """The options of the application, from those of the command line."""
    from emu.serve.options import ServeOptions

    refuse_address(job.model)
    if job.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device is {job.device!r}, give cpu or cuda")
    if job.device != "cpu" and job.num_gpus == 0:
        raise ValueError(
            f"--device {job.device} with --num-gpus 0: Ray hides GPUs that are not reserved; give --num-gpus 1"
        )
    return ServeOptions(
        model=Path(job.model).expanduser().resolve(),
        name=job.name,
        device=job.device,
        dtype=job.dtype,
        weights=job.weights,
        num_replicas=job.num_replicas,
        max_replicas=job.max_replicas,
        num_cpus=job.num_cpus,
        num_gpus=job.num_gpus,
        requests_per_replica=job.requests_per_replica,
        requests_waiting=job.requests_waiting,
        adapters={each: path.expanduser().resolve() for each, path in job.adapters.items()},
        drain_s=float(job.drain_s),
        api_keys=job.api_keys and job.api_keys.expanduser(),
        cors_origins=job.cors_origins,
        limits=job.limits,
    )


def open_fetcher(config: FetchConfig) -> Fetch:
    """A function that fetches images through the guarded fetcher: bytes, or the reason why there are none."""
    from pipelines.download.fetcher import Fetcher

    fetcher = Fetcher(config)

    def fetch(urls: Sequence[str]) -> list[bytes | str]:
        return [
            each.body if each.body is not None else f"{each.reason} {each.detail or ''}".strip()
            for each in fetcher.fetch_many(urls)
        ]

    return fetch


def run(job: ServeJob, options: ServeOptions, stop: threading.Event) -> None:
    """Start the application, wait for `stop`, delete the application; raises `JobError` if it does not start."""
    from ray import serve
    from ray.exceptions import RayError

    from emu.serve.app import build_app

    port = job.port or free_port(job.host)
    app = build_app(options, partial(open_fetcher, job.fetch) if job.fetch_images else None)
    try:
        serve.start(http_options={"host": job.host, "port": port})
        serve.run(app, name=APPLICATION, route_prefix="/")
        url = f"http://{'127.0.0.1' if job.host == '0.0.0.0' else job.host}:{port}"
        if not is_healthy(url):
            log.warning("address=%s healthy=no hint=an earlier Ray Serve keeps its port", url)
        print(f"ready: {url}/ (page), {url}/v1 (API)", flush=True)
        say("")  # it serves, which is silent
        stop.wait()
        print("stopping", flush=True)
        drain(job.drain_s)
        flush(url)
    except (RuntimeError, RayError) as error:
        last_line = str(error).strip().splitlines()[-1]
        raise JobError("; ".join([last_line, *failures()])) from error
    finally:
        serve.delete(APPLICATION)


def drain(timeout_s: float) -> None:
    """Let the running requests end, while new ones are refused."""
    from ray import serve

    handle = serve.get_app_handle(APPLICATION)
    left = handle.drain.remote(timeout_s).result(timeout_s=timeout_s + 10)
    if left:
        log.warning("requests_ended_early=%d drain_s=%g", left, timeout_s)


def flush(url: str) -> None:
    """Return when the proxy has sent the responses of the requests that ended last.

    The ingress counts a request as ended once it has handed the response to the proxy, which ends with Ray. The proxy
    has one event loop: when it has answered a later request, what came before is on its way.
    """
    for _ in range(2):
        time.sleep(FLUSH_S)
        is_healthy(url)


def failures() -> list[str]:
    """The messages of the application's deployments."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments if application else {}
    return [f"{name}: {each.message}" for name, each in deployments.items() if each.message]


def is_healthy(url: str, timeout_s: float = 10) -> bool:
    """Whether the health check at the address succeeds."""
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=timeout_s) as response:
            return response.status == 200
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(ServeJob, serve_model, arguments, hint="the server has stopped")


if __name__ == "__main__":
    sys.exit(main())
