"""The HTTP API: OpenAI's chat completions, a model list, a health check and a chat page.

Imports neither Ray nor torch: a `Backend` generates the replies.

| status | when |
|---|---|
| 400 | not JSON, a doubled key, a field that is unknown or wrong, a prompt that is too long, an image not fetched |
| 404 | an unknown path or model |
| 405 | a method that the path does not support |
| 413 | a body, an image or a number of pixels beyond the limits |
| 415 | a body that is not declared as `application/json`, or that is compressed |
| 422 | an image that cannot be decoded |
| 500 | an internal error of the server |
| 503 | all replicas are busy and the queue is full; for `/health`: no replica has loaded the model |
| 504 | no complete reply within the time limit |
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from emu.generate.prompts import Reply
from emu.serve.backend import Backend, Event, ModelCard
from emu.serve.errors import ApiError, ErrorResponse, shown
from emu.serve.requests import Fetch, read_request
from emu.serve.schema import ChatRequest, Limits, parse_request
from schemas import strict_json
from schemas.sample import Segment
from schemas.strict_json import JsonError

log = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'"
)
MAX_DIGITS = 100
"""Of a whole number in a body: the largest that any field accepts has 19."""
CODES = {
    "bad_unicode": "invalid_unicode",
    "doubled_field": "doubled_key",
    "not_finite": "invalid_value",
    "number_too_long": "invalid_value",
}
"""The `code` of an error by the reason of the JSON reader, where it is not `invalid_json`."""


def build_api(
    backend: Backend,
    card: ModelCard,
    limits: Limits,
    fetch: Fetch | None = None,
    now: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> FastAPI:
    """The application; `fetch` downloads images from the web, without it web addresses are refused."""
    api = FastAPI(title="Emu", docs_url=None, redoc_url=None, openapi_url=None)
    page = (files("emu.serve") / "page" / "index.html").read_text("utf-8")
    icon = (files("emu.serve") / "page" / "icon.svg").read_bytes()

    @api.post("/v1/chat/completions")
    async def complete(http: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        async with asyncio.timeout_at(deadline):
            request = parse_request(await read_json(http, limits.max_body_bytes))
            if request.model not in (None, card.name):
                raise unknown_model(request.model, card)
            generation = await read_request(request, card, limits, fetch)
        builder = ResponseBuilder(f"chatcmpl-{new_id()}", int(now()), card.name)
        events = until_deadline(backend.events(generation), deadline, limits.timeout_s)
        if request.stream:
            return await stream_response(request, builder, events)
        return JSONResponse(builder.completion(await final_reply(events)))

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(card, limits)]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != card.name:
            raise unknown_model(name, card)
        return model_entry(card, limits)

    @api.get("/health")
    @api.get("/healthz")
    async def health() -> JSONResponse:
        if await backend.is_ready():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "starting"}, 503, headers={"Retry-After": "2"})

    @api.get("/favicon.ico")
    @api.get("/icon.svg")
    async def page_icon() -> Response:
        return Response(
            icon, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"}
        )

    @api.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    add_error_handlers(api)
    return api


async def read_json(http: Request, limit: int) -> Any:
    """The decoded body, of which at most `limit` bytes are read."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is {kind!r}, send application/json")
    encoding = http.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, f"the content encoding is {encoding!r}, send the body uncompressed")
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > limit:
            message = f"the body has more than {limit} bytes, which is the limit"
            raise ApiError(413, message, code="body_too_large")
    return decode_json(bytes(body))


def decode_json(body: bytes) -> Any:
    """The value of a JSON document; raises `ApiError` with the field that cannot be accepted."""
    try:
        return strict_json.loads(body, MAX_DIGITS)
    except JsonError as error:
        code = CODES.get(error.reason, "invalid_json")
        if error.path is not None:
            message = f"{error.field or 'the body'} {error.detail}"
            raise ApiError(400, message, error.field, code) from error
        reason = error.detail if body else "it is empty (0 bytes)"
        raise ApiError(400, f"the body is not JSON: {reason}", code=code) from error


def model_entry(card: ModelCard, limits: Limits) -> dict[str, Any]:
    """An entry of the model list; fields that OpenAI's schema does not have are under `emu`."""
    language = card.config.language
    own = {
        "instruct": card.config.instruct,
        "generates_images": card.generates_images,
        "max_positions": language.max_positions,
        "positions_per_image": card.config.former.num_queries + 2,
        "max_tokens": min(limits.max_tokens, language.max_positions),
        "max_images": limits.max_images,
        "max_image_bytes": limits.max_image_bytes,
        "image_side": card.config.decoder.image_size if card.config.decoder else None,
    }
    return {"id": card.name, "object": "model", "created": 0, "owned_by": "emu", "emu": own}


def unknown_model(name: str | None, card: ModelCard) -> ApiError:
    """The error for a model that is not served."""
    message = f"model is {shown(name)}, this server only has {shown(card.name)}"
    return ApiError(404, message, "model", "model_not_found")


async def until_deadline(
    events: AsyncGenerator[Event, None], deadline: float, timeout_s: float
) -> AsyncGenerator[Event, None]:
    """The events until the deadline, then an `ErrorResponse`; generation is stopped in either case."""
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                event = await anext(events, None)
            if event is None:
                return
            yield event
    except TimeoutError:
        yield ErrorResponse(504, f"no complete reply within {timeout_s:g} s", code="timeout")
    finally:
        await events.aclose()


async def final_reply(events: AsyncGenerator[Event, None]) -> Reply:
    """The reply at the end of the events; raises `ApiError` if an error ends them."""
    async for event in events:
        if isinstance(event, ErrorResponse):
            raise ApiError.of(event)
        if isinstance(event, Reply):
            return event
    raise ApiError(500, "generation ended without a reply")


async def stream_response(
    request: ChatRequest, builder: ResponseBuilder, events: AsyncGenerator[Event, None]
) -> Response:
    """Server-sent events, started with the first event: an error before it has its own status."""
    first = await anext(events)
    if isinstance(first, ErrorResponse):
        raise ApiError.of(first)

    async def all_events() -> AsyncIterator[Event]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    with_usage = request.stream_options is not None and request.stream_options.include_usage
    return StreamingResponse(
        builder.stream(all_events(), with_usage),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


@dataclass(frozen=True)
class ResponseBuilder:
    """Builds the response to one request in OpenAI's schema: one object, or a stream of chunks."""

    id: str
    created: int  # seconds since 1970
    model: str

    def completion(self, reply: Reply) -> dict[str, Any]:
        """The whole reply; its content is a string, or a list of parts if there is an image."""
        content = [_part(s) for s in reply.segments] if reply.images else reply.text
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": reply.finish_reason,
            "logprobs": None,
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": usage(reply)}

    async def stream(self, events: AsyncIterator[Event], with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events: text as it is generated, the end, `[DONE]`; an error event on failure."""
        yield _sse(self._chunk({"role": "assistant", "content": ""}))
        async for event in events:
            if isinstance(event, str):
                yield _sse(self._chunk({"content": event}))
            elif isinstance(event, ErrorResponse):
                yield _sse(event.as_json())
            else:
                yield _sse(self._chunk({}, event.finish_reason))
                if with_usage:
                    head = self._head("chat.completion.chunk")
                    yield _sse(head | {"choices": [], "usage": usage(event)})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(reply: Reply) -> dict[str, int]:
    """Positions used, those of images included."""
    return {
        "prompt_tokens": reply.num_prompt_tokens,
        "completion_tokens": reply.num_reply_tokens,
        "total_tokens": reply.num_prompt_tokens + reply.num_reply_tokens,
    }


def _part(segment: Segment) -> dict[str, Any]:
    if segment.kind == "text":
        return {"type": "text", "text": segment.text}
    assert segment.image is not None
    encoded = base64.b64encode(segment.image).decode()
    url = f"data:image/{segment.format};base64,{encoded}"
    return {"type": "image_url", "image_url": {"url": url}}


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def add_error_handlers(api: FastAPI) -> None:
    """Every error is sent in OpenAI's form."""

    def send(error: ErrorResponse) -> Response:
        headers = {"Retry-After": "5"} if error.status == 503 else None
        return JSONResponse(error.as_json(), error.status, headers)

    @api.exception_handler(ApiError)
    async def api_error(_http: Request, error: ApiError) -> Response:
        return send(error.response)

    @api.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> Response:
        message = f"{http.method} {http.url.path}: {error.detail}"
        return send(ErrorResponse(error.status_code, message))

    @api.exception_handler(TimeoutError)
    async def too_late(_http: Request, _error: TimeoutError) -> Response:
        return send(ErrorResponse(504, "the request took too long to arrive", code="timeout"))

    @api.exception_handler(Exception)
    async def internal_error(_http: Request, error: Exception) -> Response:
        log.error("request=failed", exc_info=error)
        return send(ErrorResponse(500, "the request failed; see the log of the server"))
