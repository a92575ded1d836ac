"""The Ray Serve application: an ingress that checks requests, and replicas that hold the model.

The ingress is light (neither torch nor weights), so health, page and errors are answered at once while the replicas
are busy, and a large upload or a slow image host occupies no accelerator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
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
from emu.serve.backend import EngineStats, Event, Health, ModelCard, Work
from emu.serve.errors import ErrorResponse
from emu.serve.limits import Limits
from emu.serve.local import LocalBackend
from emu.serve.media import Fetch
from emu.weights.layout import read_config
from schemas.validation import Checked

INGRESS, REPLICA = "ingress", "engine"
OpenFetch = Callable[[], Fetch]
"""Makes the function that fetches images; called in the process of the ingress."""

STATS_TIMEOUT_S = 5.0
BUSY, LOST = "overloaded", "replica_lost"
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
        self._id = serve.get_replica_context().replica_id.unique_id

    async def events(self, request: Work) -> AsyncGenerator[Event, None]:
        """As `LocalBackend.events`."""
        events = self._backend.events(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def stats(self) -> EngineStats:
        """The figures of this copy."""
        (stats,) = await self._backend.stats()
        return replace(stats, replica=self._id)


@dataclass(frozen=True)
class ReplicaBackend:
    """The backend that sends a request to a replica with free capacity."""

    handle: DeploymentHandle
    application: str

    async def events(self, request: Work) -> AsyncGenerator[Event, None]:
        """The events of a replica; its failures become an `ErrorResponse`.

        If the replica is lost before its first event, another one is asked, once.
        """
        for is_last_try in (False, True):
            events = self._remote_events(request)
            num_events, is_open = 0, True
            try:
                async for event in events:
                    num_events += 1
                    yield event
                return
            except BackPressureError:
                is_open = False
                failure = ErrorResponse(503, "all replicas are busy, try again soon", code=BUSY)
                break
            except (RayError, RayServeException):
                is_open = False
                log.exception("replica=lost num_events=%d", num_events)
                failure = ErrorResponse(503, "the replica was lost, try again soon", code=LOST)
                if is_last_try or num_events:
                    break
            finally:
                if is_open:
                    events.cancel()
        yield failure

    def _remote_events(self, request: Work) -> DeploymentResponseGenerator:
        remote = self.handle.options(stream=True).events.remote(request)
        return cast(DeploymentResponseGenerator, remote)

    async def health(self) -> Health:
        """Ready while a replica runs; a busy one counts. The controller of Ray Serve knows."""
        try:
            return await asyncio.to_thread(_replica_health, self.application)
        except (RayError, RayServeException):
            log.exception("controller=failed")
            return Health(False, "the controller of Ray Serve does not answer")

    async def stats(self) -> Sequence[EngineStats]:
        """The figures of all replicas that answer within a few seconds."""
        try:
            return await asyncio.to_thread(self._all_stats)
        except (RayError, RayServeException, TimeoutError):
            log.exception("stats=failed")
            return []

    def _all_stats(self) -> Sequence[EngineStats]:
        return self.handle.broadcast("stats").results(timeout_s=STATS_TIMEOUT_S)


def _replica_health(application: str) -> Health:
    found = serve.status().applications.get(application)
    replica = None if found is None else found.deployments.get(REPLICA)
    states = {} if replica is None else replica.replica_states
    num_running = sum(count for state, count in states.items() if state == "RUNNING")
    if num_running:
        return Health(True)
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count)
    message = f"no replica runs ({counts or 'none exists'})"
    return Health(
        False, f"{message}: {replica.message}" if replica and replica.message else message
    )
