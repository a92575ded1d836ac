"""`POST /v1/chat/completions`: texts and images in, texts and images out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from emu.serve.openapi import json_body
from emu.serve.replies import ChatReplies
from emu.serve.requests import read_request
from emu.serve.sampling import choices_of
from emu.serve.schema import ChatRequest, parse_request
from emu.serve.server import Server
from emu.serve.streams import EventStream, begun


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
        events = await begun(http, server.streams(works, timer))
        return EventStream(builder.stream(events, len(works), request.includes_usage))

    return routes
