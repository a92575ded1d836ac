"""The HTTP API: OpenAI's chat completions and images, a model list, health, metrics and a chat page.

Imports neither Ray nor torch: a `Backend` generates the replies.

| status | when |
|---|---|
| 400 | not JSON, a doubled key, a field that is unknown or wrong, a prompt that is too long, an image not fetched |
| 401, 403 | no API key or an unknown one; a key that is not active |
| 404 | an unknown path or model |
| 405 | a method that the path does not support |
| 408 | a body that does not arrive in time |
| 413 | a body, an image or a number of pixels beyond the limits |
| 415 | a body of another content type than the route takes, or that is compressed |
| 422 | an image or a video that cannot be decoded |
| 429 | a key beyond its rate or its number of parallel requests |
| 500 | an internal error of the server |
| 503 | too many requests, or the server is about to stop; for `/health`: no replica has loaded the model |
| 504 | no complete reply within the time limit |
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from emu.serve.backend import Backend, ModelCard
from emu.serve.errors import ApiError, ErrorResponse
from emu.serve.gate import NOBODY_READS, Gate, Traffic, error_response, path_of
from emu.serve.keys import ApiKey, Keys
from emu.serve.limits import Limits
from emu.serve.media import Fetch
from emu.serve.metrics import Metrics
from emu.serve.routes import chat, completions, images, models, scores, status
from emu.serve.server import ClientGone, Server

log = logging.getLogger(__name__)
MAX_PATH = 200
"""Characters of a path that an error repeats."""


@dataclass(frozen=True)
class Access:
    """Who may call the API."""

    keys: Sequence[ApiKey] | None = None
    """None: everyone who reaches the address."""
    origins: Sequence[str] = ()
    """Origins of web pages that may call the API from a browser (CORS), such as https://app.example; * for all."""


def build_api(
    backend: Backend,
    card: ModelCard,
    limits: Limits,
    fetch: Fetch | None = None,
    access: Access = Access(),
    now: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> Api:
    """The application; `fetch` downloads images from the web, without it web addresses are refused.

    `app.state.traffic` counts the requests that are handled, and makes the server drain.
    """
    described = FastAPI(
        title="Emu", redoc_url=None, description="Texts and images in, texts and images out."
    )
    metrics, traffic = Metrics(), Traffic()
    server = Server(backend, card, limits, fetch, metrics, now, new_id)
    routes = (
        chat.router(server),
        completions.router(server),
        images.router(server),
        scores.router(server),
        models.router(server),
        status.router(server, traffic),
    )
    for each in routes:
        described.include_router(each)
    add_error_handlers(described)
    keys = None if access.keys is None else Keys(access.keys)
    app = Gate(Posts(described, routes), limits, metrics, traffic, keys)
    return Api(app, traffic, access.origins)


class Api:
    """The ASGI application."""

    def __init__(self, app: ASGIApp, traffic: Traffic, origins: Sequence[str]) -> None:
        self.state = State({"traffic": traffic})
        self.app = app
        if origins:
            self.app = CORSMiddleware(
                app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        await self.app(scope, receive, send)


class Posts:
    """Calls the routes of POST directly; FastAPI, whose layers take longer than a route itself, does all the others.

    These routes take the request and return the response, so that FastAPI would do no more than find and describe them.
    """

    def __init__(self, described: FastAPI, routers: Sequence[APIRouter]) -> None:
        self.described = described
        self.routes: dict[str, APIRoute] = {}
        for router in routers:
            for route in router.routes:
                if isinstance(route, APIRoute) and route.methods == {"POST"}:
                    self.routes[route.path] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = self.routes.get(path_of(scope)) if is_post else None
        if route is None:
            await self.described(scope, receive, send)
            return
        scope["route"] = route
        http = Request(scope, receive)
        try:
            response = await route.endpoint(http)
        except (ApiError, HTTPException, ClientGone) as error:
            response = response_of(http, error)
        except Exception:
            log.exception("request=failed")
            response = failed()
        await response(scope, receive, send)


def add_error_handlers(api: FastAPI) -> None:
    """Every error is sent in OpenAI's form."""

    async def respond(http: Request, error: Exception) -> Response:
        return response_of(http, error)

    for kind in (ApiError, HTTPException, ClientGone, Exception):
        api.add_exception_handler(kind, respond)


def response_of(http: Request, error: Exception) -> Response:
    """The response to a request that an error ended."""
    if isinstance(error, ApiError):
        return error_response(error.response)
    if isinstance(error, ClientGone):
        return Response(status_code=NOBODY_READS)
    if isinstance(error, HTTPException):
        message = f"{http.method} {http.url.path[:MAX_PATH]}: {error.detail}"
        return error_response(ErrorResponse(error.status_code, message))
    log.error("request=failed", exc_info=error)
    return failed()


def failed() -> Response:
    """The response to a request that failed for a reason that is not the caller's."""
    message = "the request failed; see the log of the server"
    return error_response(ErrorResponse(500, message))
