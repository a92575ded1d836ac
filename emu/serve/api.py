"""The HTTP door: OpenAI's chat completions, a model list, a health check and a small page.

Knows neither Ray nor torch: a `Backend` answers.

| status | when |
|---|---|
| 400 | no JSON, a doubled key, a field that is unknown or wrong, a prompt that is too long, an image not fetched |
| 404 | an unknown path or model |
| 405 | a method that the path does not have |
| 413 | a body, an image or a number of pixels beyond the limits |
| 415 | a body that is not declared as `application/json`, or that is compressed |
| 422 | an image that cannot be decoded |
| 500 | a fault of the server |
| 503 | all replicas are busy and the line is full |
| 504 | no answer within the time limit |
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from emu.generate.options import Reply
from emu.serve.backend import Backend, Event, ModelCard
from emu.serve.errors import ApiError, Problem, refuse
from emu.serve.limits import Limits
from emu.serve.requests import Fetch, read_work
from emu.serve.responses import Envelope
from emu.serve.schema import ChatRequest, parse_request
from emu.serve.validation import read_json, shown

log = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'"
)


def build_api(
    backend: Backend,
    card: ModelCard,
    limits: Limits,
    fetch: Fetch | None = None,
    now: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> FastAPI:
    """The application; `fetch` gets images from the web, without it web addresses are refused."""
    api = FastAPI(title="Emu", docs_url=None, redoc_url=None, openapi_url=None)
    page = (files("emu.serve") / "page" / "index.html").read_text("utf-8")

    @api.post("/v1/chat/completions")
    async def complete(http: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        async with asyncio.timeout_at(deadline):
            request = parse_request(await read_json(http, limits.max_body_bytes))
            if request.model not in (None, card.name):
                raise no_model(request.model, card)
            work = await read_work(request, card, limits, fetch)
        envelope = Envelope(f"chatcmpl-{new_id()}", int(now()), card.name)
        events = within(backend.events(work), deadline, limits.timeout_s)
        if request.stream:
            return await streamed(request, envelope, events)
        return JSONResponse(envelope.completion(await last(events)))

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(card, limits)]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != card.name:
            raise no_model(name, card)
        return described(card, limits)

    @api.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    add_error_forms(api)
    return api


def described(card: ModelCard, limits: Limits) -> dict[str, Any]:
    """An entry of the model list; what OpenAI's schema has no field for stands under `emu`."""
    language = card.config.language
    own = {
        "instruct": card.config.instruct,
        "draws": card.draws,
        "max_positions": language.max_positions,
        "positions_per_image": card.config.former.num_queries + 2,
        "max_tokens": min(limits.max_tokens, language.max_positions),
        "max_images": limits.max_images,
        "max_image_bytes": limits.max_image_bytes,
        "image_side": card.config.decoder.image_size if card.config.decoder else None,
    }
    return {"id": card.name, "object": "model", "created": 0, "owned_by": "emu", "emu": own}


def no_model(name: str | None, card: ModelCard) -> ApiError:
    """The error for a model that is not served."""
    message = f"model is {shown(name)}, this server has {shown(card.name)} alone"
    return refuse(404, message, "model", "model_not_found")


async def within(
    events: AsyncGenerator[Event, None], deadline: float, timeout_s: float
) -> AsyncGenerator[Event, None]:
    """The events until the deadline, then a `Problem`; the work is left behind in either case."""
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                event = await anext(events, None)
            if event is None:
                return
            yield event
    except TimeoutError:
        yield Problem(504, f"no whole answer within {timeout_s:g} s", code="timeout")
    finally:
        await events.aclose()


async def last(events: AsyncGenerator[Event, None]) -> Reply:
    """The reply at the end of the events; raises `ApiError` where a problem ends them."""
    async for event in events:
        if isinstance(event, Problem):
            raise ApiError(event)
        if isinstance(event, Reply):
            return event
    raise refuse(500, "the answer ended before its time")


async def streamed(
    request: ChatRequest, envelope: Envelope, events: AsyncGenerator[Event, None]
) -> Response:
    """Server-sent events, once the first piece is there: a problem before it has its own status."""
    first = await anext(events)
    if isinstance(first, Problem):
        raise ApiError(first)

    async def again() -> AsyncIterator[Event]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    with_usage = request.stream_options is not None and request.stream_options.include_usage
    return StreamingResponse(
        envelope.stream(again(), with_usage),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


def add_error_forms(api: FastAPI) -> None:
    """Every error leaves in OpenAI's form."""

    def response(problem: Problem) -> Response:
        headers = {"Retry-After": "5"} if problem.status == 503 else None
        return JSONResponse(problem.as_json(), problem.status, headers)

    @api.exception_handler(ApiError)
    async def refused(_http: Request, error: ApiError) -> Response:
        return response(error.problem)

    @api.exception_handler(HTTPException)
    async def no_such_path(http: Request, error: HTTPException) -> Response:
        return response(
            Problem(error.status_code, f"{http.method} {http.url.path}: {error.detail}")
        )

    @api.exception_handler(TimeoutError)
    async def late(_http: Request, _error: TimeoutError) -> Response:
        return response(Problem(504, "the request took too long to arrive", code="timeout"))

    @api.exception_handler(Exception)
    async def failed(_http: Request, error: Exception) -> Response:
        log.error("request=failed", exc_info=error)
        return response(Problem(500, "the request failed; the log of the server says why"))
