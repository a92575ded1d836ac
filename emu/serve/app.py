"""The Ray Serve application: an ingress that checks requests, and replicas that hold the model.

The ingress is light (neither torch nor weights), so health, page and errors are answered at once while the replicas
are busy, and a large upload or a slow image host occupies no accelerator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from emu.generate.prompts import TextOptions
from emu.serve.api import build_api
from emu.serve.backend import Event, GenerationRequest, LocalBackend, ModelCard
from emu.serve.errors import ErrorResponse
from emu.serve.requests import Fetch
from emu.serve.schema import Limits
from emu.weights.layout import read_config
from schemas.validation import Checked

INGRESS, REPLICA = "ingress", "engine"
OpenFetch = Callable[[], Fetch]
"""Makes the function that fetches images; called in the process of the ingress."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions(Checked):
    """How the application is distributed over a cluster, and the limits of one request."""

    model: Path
    """The model directory; every node that runs a replica must be able to read it."""
    name: str | None = None
    """The value of `model` in requests; by default the directory's name."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`."""
    num_replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model."""
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """CPU cores per replica."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs per replica; with a fraction, replicas share one."""
    requests_per_replica: Annotated[int, Field(ge=1)] = 4
    """Requests that one replica handles at the same time."""
    requests_waiting: Annotated[int, Field(ge=1)] = 64
    """Requests that may wait for a replica; further ones get status 503."""
    limits: Limits = field(default_factory=Limits)


def build_app(options: ServeOptions, open_fetch: OpenFetch | None = None) -> serve.Application:
    """The application, to be passed to `serve.run`.

    Raises FileNotFoundError or ValueError for an incomplete model directory.
    """
    config = read_config(options.model)
    card = ModelCard.of(options.model, config, options.name)

    def build_ingress() -> FastAPI:
        handle = serve.get_deployment_handle(REPLICA)
        fetch = open_fetch() if open_fetch else None
        backend = ReplicaBackend(handle, serve.get_replica_context().app_name)
        return build_api(backend, card, options.limits, fetch)

    replica = serve.deployment(
        name=REPLICA,
        num_replicas=options.num_replicas,
        max_ongoing_requests=options.requests_per_replica,
        max_queued_requests=options.requests_waiting,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
    )(EngineReplica)
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress(build_ingress)(Ingress))
    return ingress.bind(replica.bind(options))


class Ingress:
    """Receives the requests; its routes are those of `build_api`."""

    def __init__(self, replica: DeploymentHandle) -> None:
        self.replica = replica


class EngineReplica:
    """One copy of the model."""

    def __init__(self, options: ServeOptions) -> None:
        import emu

        engine = emu.load(options.model, options.device, options.dtype)
        max_pixels = options.limits.max_image_pixels
        self._backend = LocalBackend(engine, options.requests_per_replica, max_pixels)
        engine.generate_text([""], TextOptions(max_new_tokens=1))  # ready means: it has answered

    async def events(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """As `LocalBackend.events`."""
        events = self._backend.events(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


@dataclass(frozen=True)
class ReplicaBackend:
    """The backend that sends a request to a replica with free capacity."""

    handle: DeploymentHandle
    application: str

    async def events(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of the replica; its failures become an `ErrorResponse`."""
        events = cast(
            DeploymentResponseGenerator, self.handle.options(stream=True).events.remote(request)
        )
        try:
            async for event in events:
                yield event
        except BackPressureError:
            yield ErrorResponse(503, "all replicas are busy, try again soon", code="overloaded")
        except (RayError, RayServeException):
            log.exception("replica=failed")
            yield ErrorResponse(503, "the replica was lost, try again soon", code="replica_lost")
        finally:
            events.cancel()

    async def is_ready(self) -> bool:
        """Whether a replica runs; a busy one counts. The controller of Ray Serve knows."""
        try:
            return await asyncio.to_thread(_has_running_replica, self.application)
        except (RayError, RayServeException):
            log.exception("controller=failed")
            return False


def _has_running_replica(application: str) -> bool:
    found = serve.status().applications.get(application)
    replica = None if found is None else found.deployments.get(REPLICA)
    states = {} if replica is None else replica.replica_states
    return any(state == "RUNNING" and count > 0 for state, count in states.items())
