"""A small HTTP/1.1 server on 127.0.0.1 that sends exactly the bytes that a test chooses, with or without TLS.

with WebServer({"/a.jpg": response(200, jpeg)}) as server:
    FetchConfig(allow_host=(server.allow("images.example"),))
    server.url("/a.jpg", "images.example")
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """A request that has arrived."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    connection: int
    """Number of the connection, from 0."""
    nth: int
    """How many requests for this path came before."""


@dataclass(frozen=True)
class Call:
    """A request, and the connection on which to respond."""

    request: Request
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Sends a well-formed response with a Content-Length."""
        await self.send(head(status, [*headers, ("Content-Length", str(len(body)))]) + body)

    def close(self) -> None:
        """Closes the connection."""
        self.writer.close()

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        no_linger = struct.pack("ii", 1, 0)
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self.writer.transport.abort()


Handler = Callable[[Call], Awaitable[None]]


def head(status: int, headers: Headers = ()) -> bytes:
    """Status line and headers, with the empty line."""
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers)]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("utf-8")


def response(status: int, body: bytes = b"", headers: Headers = ()) -> Handler:
    """A handler that always sends this response."""
    fixed = tuple(headers)

    async def handle(call: Call) -> None:
        await call.respond(status, body, fixed)

    return handle


class WebServer:
    """Serves `handlers` by path; other paths get 404. A context manager.

    Args:
        handlers: by path without the query.
        tls: makes it serve https.
        greeting: bytes sent as soon as a client connects (no server of HTTP does that).
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        tls: ssl.SSLContext | None = None,
        greeting: bytes = b"",
    ) -> None:
        self.handlers = dict(handlers)
        self.requests: list[Request] = []
        """Every request, in the order of arrival."""
        self.most_at_once = 0
        """The largest number of requests in flight at the same time."""
        self._tls = tls
        self._greeting = greeting
        self._seen: Counter[str] = Counter()
        self._num_connections = 0
        self._num_now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        self._server = started.result(timeout=10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def url(self, path: str, host: str = "images.example") -> str:
        """An address of this server under a made-up host name (see `allow`)."""
        return f"{'https' if self._tls else 'http'}://{host}{path}"

    def allow(self, host: str = "images.example") -> str:
        """What to give to `--fetch.allow-host`, so that `host` leads here."""
        return f"{host}=127.0.0.1:{self.port}"

    def paths(self) -> Counter[str]:
        """How often each path was requested."""
        return Counter(request.path for request in self.requests)

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = self._num_connections
        self._num_connections += 1
        # Clients may disconnect at any moment; tests do that on purpose.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.write(self._greeting)
            while not writer.is_closing():
                request = self._parse(await reader.readuntil(b"\r\n\r\n"), connection)
                self.requests.append(request)
                self._num_now += 1
                self.most_at_once = max(self.most_at_once, self._num_now)
                try:
                    handler = self.handlers.get(request.path.partition("?")[0], response(404))
                    await handler(Call(request, writer))
                finally:
                    self._num_now -= 1
        writer.close()

    def _parse(self, text: bytes, connection: int) -> Request:
        first, *lines = text.decode("latin-1").split("\r\n")[:-2]
        path = first.split(" ")[1]
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        nth = self._seen[path]
        self._seen[path] += 1
        return Request(path, headers, connection, nth)
