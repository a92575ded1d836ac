"""`POST /v1/chat/completions`: texts and images in, texts and images out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from emu.serve.backend import Event
from emu.serve.errors import ApiError, ErrorResponse
from emu.serve.openapi import json_body
from emu.serve.replies import ChatReplies
from emu.serve.requests import read_request
from emu.serve.sampling import choices_of
from emu.serve.schema import ChatRequest, parse_request
from emu.serve.server import Server, merged, unless_gone


def router(server: Server) -> APIRouter:
    """The route of chats."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", openapi_extra=json_body(ChatRequest))
    async def complete(http: Request) -> Response:
        """A reply to a conversation, whole or as server-sent events."""
        timer = server.timer()
        request = parse_request(await server.json(http))
        adapter = server.adapter(request.model)
        generation = await read_request(request, server.card, server.limits, server.fetch, adapter)
        works = choices_of(generation, request.n)
        builder = ChatReplies(f"chatcmpl-{server.new_id()}", int(server.now()), server.card.name)
        if not request.stream:
            return JSONResponse(builder.completion(await server.answers(http, works, timer)))
        events = merged([server.events(work, timer) for work in works])
        events = await begun(http, events)
        return event_stream(builder.stream(events, len(works), request.includes_usage))

    return routes


Numbered = AsyncGenerator[tuple[int, Event], None]
"""Events, each with the number of its request."""


async def begun(http: Request, events: Numbered) -> Numbered:
    """The same events, once the first is there; raises `ApiError` if it is an error, which so has its own status."""
    try:
        number, first = await unless_gone(http, anext(events))
    except BaseException:
        await events.aclose()
        raise
    if isinstance(first, ErrorResponse):
        await events.aclose()
        raise ApiError.of(first)

    async def all_events() -> Numbered:
        try:
            yield number, first
            async for each in events:
                yield each
        finally:
            await events.aclose()

    return all_events()


def event_stream(chunks: AsyncIterator[str]) -> Response:
    """The response that sends these server-sent events."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
