"""The Ray Serve application: a door that checks requests, and replicas that hold the model.

The door is light (neither torch nor weights), so health, page and errors answer at once while the
replicas are at work, and a large upload or a slow image host holds up no accelerator.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from emu.serve.api import build_api
from emu.serve.backend import Event, ModelCard, Work
from emu.serve.errors import Problem
from emu.serve.limits import Limits
from emu.serve.requests import Fetch
from emu.weights.layout import read_config

DOOR, REPLICA = "door", "engine"
OpenFetch = Callable[[], Fetch]
"""Makes the function that fetches images; called where the door runs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """How the application is spread over a cluster, and what one request may ask for."""

    model: Path
    """The model directory; every node that runs a replica must see it."""
    name: str | None = None
    """What callers put into `model`; by default the directory's name."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`."""
    num_replicas: int = 1
    """Copies of the model."""
    num_cpus: float = 1
    """Of one replica."""
    num_gpus: float = 0
    """Of one replica; a fraction shares a card."""
    requests_per_replica: int = 4
    """Requests that one replica works on at the same time."""
    requests_waiting: int = 64
    """Requests that may wait for a replica; those beyond are answered with 503."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("num_replicas", "requests_per_replica", "requests_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give at least 1")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError(f"num_cpus {self.num_cpus}, num_gpus {self.num_gpus}: give 0 or more")


def build_app(options: ServeOptions, open_fetch: OpenFetch | None = None) -> serve.Application:
    """The application, to be given to `serve.run`.

    Raises FileNotFoundError or ValueError for a model directory that is not whole.
    """
    config = read_config(options.model)
    card = ModelCard.of(options.model, config, options.name)

    def build_door() -> FastAPI:
        handle = serve.get_deployment_handle(REPLICA)
        fetch = open_fetch() if open_fetch else None
        return build_api(Replicas(handle), card, options.limits, fetch)

    replica = serve.deployment(
        name=REPLICA,
        num_replicas=options.num_replicas,
        max_ongoing_requests=options.requests_per_replica,
        max_queued_requests=options.requests_waiting,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
    )(EngineReplica)
    door = serve.deployment(
        name=DOOR,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress(build_door)(Door))
    return door.bind(replica.bind(options))


class Door:
    """Where requests come in; its routes are those of `build_api`."""

    def __init__(self, replica: DeploymentHandle) -> None:
        self.replica = replica


class EngineReplica:
    """One copy of the model."""

    def __init__(self, options: ServeOptions) -> None:
        import emu
        from emu.serve.backend import Worker

        engine = emu.load(options.model, options.device, options.dtype)
        limits = options.limits
        self._worker = Worker(engine, options.requests_per_replica, limits.max_image_pixels)

    async def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """As `Worker.events`."""
        events = self._worker.events(work)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


@dataclass(frozen=True)
class Replicas:
    """The backend that hands work to a replica with room for it."""

    handle: DeploymentHandle

    async def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """The events of the replica; its failures become a `Problem`."""
        answers = cast(
            DeploymentResponseGenerator, self.handle.options(stream=True).events.remote(work)
        )
        try:
            async for event in answers:
                yield event
        except BackPressureError:
            yield Problem(503, "all replicas are busy, try again soon", code="overloaded")
        except (RayError, RayServeException):
            log.exception("replica=failed")
            yield Problem(503, "the replica was lost, try again soon", code="replica_lost")
        finally:
            answers.cancel()
