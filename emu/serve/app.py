"""The Ray Serve application: an ingress that checks requests, and replicas that hold the model.

The ingress is light (neither torch nor weights), so health, page and errors are answered at once while the replicas
are busy, and a large upload or a slow image host occupies no accelerator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from emu.generate.prompts import TextOptions
from emu.serve.api import Access, Api, build_api
from emu.serve.backend import EngineStats, Event, Health, ModelCard, Work
from emu.serve.errors import ErrorResponse
from emu.serve.gate import Traffic
from emu.serve.keys import load_keys
from emu.serve.local import LocalBackend
from emu.serve.media import Fetch
from emu.serve.options import ServeOptions, options_of
from emu.serve.process import MANY, prepare_process
from emu.weights.layout import read_config

INGRESS, REPLICA = "ingress", "engine"
OpenFetch = Callable[[], Fetch]
"""Makes the function that fetches images; called in the process of the ingress."""

STATS_TIMEOUT_S = 5.0
HEALTH_CHECK_PERIOD_S = 2.0
"""Seconds after which a lost replica is noticed at the latest, and replaced."""
DRAIN_POLL_S = 0.05
BUSY, LOST = "overloaded", "replica_lost"
log = logging.getLogger(__name__)


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application for Ray Serve's own commands and configurations; takes the fields of `ServeOptions`.

        serve run emu.serve.app:build model=/shared/emu num_replicas=2

    Raises:
        ConfigError: for an unknown argument or a wrong value.
        FileNotFoundError: for an incomplete model directory.
    """
    return build_app(options_of(arguments))


def build_app(options: ServeOptions, open_fetch: OpenFetch | None = None) -> serve.Application:
    """The application, to be passed to `serve.run`.

    Raises FileNotFoundError or ValueError for an incomplete model directory or a wrong file of keys.
    """
    config = read_config(options.model)
    card = ModelCard.of(options.model, config, options.name)
    card = replace(card, adapters=tuple(options.adapters))
    keys = None if options.api_keys is None else load_keys(options.api_keys)
    access = Access(keys, options.cors_origins)

    def build_ingress() -> Api:
        handle = serve.get_deployment_handle(REPLICA)
        fetch = open_fetch() if open_fetch else None
        backend = ReplicaBackend(handle, serve.get_replica_context().app_name)
        api = build_api(backend, card, options.limits, fetch, access)
        prepare_process(MANY)
        return api

    replica = serve.deployment(
        name=REPLICA,
        max_ongoing_requests=options.requests_per_replica,
        max_queued_requests=options.requests_waiting,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        graceful_shutdown_timeout_s=options.drain_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        **_number_of_replicas(options),
    )(EngineReplica)
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=2 * options.limits.max_parallel,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.drain_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    )(serve.ingress(build_ingress)(Ingress))
    return ingress.bind(replica.bind(options))


def _number_of_replicas(options: ServeOptions) -> dict[str, Any]:
    if options.max_replicas is None:
        return {"num_replicas": options.num_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.num_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": max(1.0, 0.75 * options.requests_per_replica),
        }
    }


class Ingress:
    """Receives the requests; its routes are those of `build_api`."""

    def __init__(self, replica: DeploymentHandle) -> None:
        self.replica = replica

    async def drain(self, timeout_s: float) -> int:
        """Refuses new requests and waits until the others have ended; returns how many have not in that time."""
        # `serve.ingress` makes a subclass that has the application
        traffic: Traffic = cast("Any", self).app.state.traffic
        traffic.is_draining = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while traffic.num_requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
        return traffic.num_requests


class EngineReplica:
    """One copy of the model."""

    def __init__(self, options: ServeOptions) -> None:
        import emu

        engine = emu.load(options.model, options.device, options.dtype, options.weights)
        max_pixels = options.limits.max_image_pixels
        self._backend = LocalBackend(
            engine, options.requests_per_replica, max_pixels, options.adapters
        )
        engine.generate_text([""], TextOptions(max_new_tokens=1))  # ready means: it has answered
        self._id = serve.get_replica_context().replica_id.unique_id
        prepare_process()

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
