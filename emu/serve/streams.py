"""Server-sent events: begun once the first event of the engine is there, ended when the client goes away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from emu.serve.backend import Event
from emu.serve.errors import ApiError, ErrorResponse
from emu.serve.server import ClientGone, Numbered, unless_gone

DONE = "data: [DONE]\n\n"
"""The end of every stream."""


async def begun(http: Request, events: Numbered) -> Begun:
    """The same events, once the first is there; raises `ApiError` if it is an error, which so has its own status."""
    try:
        first = await unless_gone(http.receive, anext(events))
        if isinstance(first[1], ErrorResponse):
            raise ApiError.of(first[1])
    except BaseException:
        await events.aclose()
        raise
    return Begun(first, events)


class Begun:
    """Events of which the first is there already."""

    def __init__(self, first: tuple[int, Event], events: Numbered) -> None:
        self._first: tuple[int, Event] | None = first
        self._events = events

    def __aiter__(self) -> Begun:
        return self

    def __anext__(self) -> Awaitable[tuple[int, Event]]:
        if self._first is None:
            return self._events.__anext__()
        first, self._first = self._first, None
        return _ready(first)

    async def aclose(self) -> None:
        """Ends the requests."""
        await self._events.aclose()


async def _ready(value: tuple[int, Event]) -> tuple[int, Event]:
    return value


class EventStream(Response):
    """The response that sends server-sent events until `DONE`; ends them when the client closes the connection."""

    def __init__(self, chunks: AsyncGenerator[str, None]) -> None:
        self.chunks, self.status_code, self.background = chunks, 200, None
        self.media_type = "text/event-stream"
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        with contextlib.suppress(ClientGone):
            await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(self.chunks) as chunks:
            await send(start)
            async for chunk in chunks:
                more = not chunk.endswith(DONE)  # JSON has no line feed: only the last one ends so
                message = {"type": "http.response.body", "body": chunk.encode(), "more_body": more}
                await send(message)
