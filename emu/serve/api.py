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

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from emu.serve.backend import Backend, ModelCard
from emu.serve.errors import ApiError, ErrorResponse
from emu.serve.gate import NOBODY_READS, Gate, Traffic, error_response
from emu.serve.keys import ApiKey, Keys
from emu.serve.limits import Limits
from emu.serve.media import Fetch
from emu.serve.metrics import Metrics
from emu.serve.routes import chat, completions, images, models, scores, status
from emu.serve.server import ClientGone, Server

log = logging.getLogger(__name__)


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
) -> FastAPI:
    """The application; `fetch` downloads images from the web, without it web addresses are refused.

    `app.state.traffic` counts the requests that are handled, and makes the server drain.
    """
    api = FastAPI(
        title="Emu", redoc_url=None, description="Texts and images in, texts and images out."
    )
    metrics, traffic = Metrics(), Traffic()
    server = Server(backend, card, limits, fetch, metrics, now, new_id)
    api.state.traffic = traffic
    for routes in (
        chat.router(server),
        completions.router(server),
        images.router(server),
        scores.router(server),
        models.router(server),
        status.router(server, traffic),
    ):
        api.include_router(routes)
    keys = None if access.keys is None else Keys(access.keys)
    api.add_middleware(Gate, limits=limits, metrics=metrics, traffic=traffic, keys=keys)
    if access.origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    add_error_handlers(api)
    return api


def add_error_handlers(api: FastAPI) -> None:
    """Every error is sent in OpenAI's form."""

    @api.exception_handler(ApiError)
    async def api_error(_http: Request, error: ApiError) -> Response:
        return error_response(error.response)

    @api.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> Response:
        message = f"{http.method} {http.url.path}: {error.detail}"
        return error_response(ErrorResponse(error.status_code, message))

    @api.exception_handler(ClientGone)
    async def client_gone(_http: Request, _error: ClientGone) -> Response:
        return Response(status_code=NOBODY_READS)

    @api.exception_handler(Exception)
    async def internal_error(_http: Request, error: Exception) -> Response:
        log.error("request=failed", exc_info=error)
        message = "the request failed; see the log of the server"
        return error_response(ErrorResponse(500, message))
