"""A bare HTTP and HTTPS server of photos in memory, in a process of its own, so that only clients are measured."""

import asyncio
import multiprocessing
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

_MAX_REQUEST_BYTES = 65_536


@contextmanager
def image_server(
    photos: list[bytes], certificate: Path, closes: bool = False
) -> Iterator[dict[str, int]]:
    """Ports by scheme of a running server; photo n is at `/n.jpg`.

    Args:
        photos: encoded images.
        certificate: PEM file with certificate chain and key.
        closes: ends the connection after each response.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(photos, certificate, closes, theirs), daemon=True
    )
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join(timeout=10)


def _run(photos: list[bytes], certificate: Path, closes: bool, pipe: Connection) -> None:
    asyncio.run(_serve(photos, certificate, closes, pipe))


async def _serve(photos: list[bytes], certificate: Path, closes: bool, pipe: Connection) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    ports: dict[str, int] = {}
    for scheme, tls in (("http", None), ("https", context)):
        server = await loop.create_server(
            lambda: _Photos(photos, closes), "127.0.0.1", 0, ssl=tls, backlog=1024
        )
        ports[scheme] = server.sockets[0].getsockname()[1]
    pipe.send(ports)
    await asyncio.Event().wait()


class _Photos(asyncio.Protocol):
    """Answers GET /n.jpg; keeps the connection unless it or the client is to close it."""

    def __init__(self, photos: list[bytes], closes: bool) -> None:
        self._photos = photos
        self._closes = closes
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers every whole request that has arrived."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, self._received = self._received.split(b"\r\n\r\n", 1)
            self._answer(request)
        if len(self._received) > _MAX_REQUEST_BYTES:
            self._transport.abort()

    def _answer(self, request: bytes) -> None:
        number = int(request.split(b" ")[1].strip(b"/").removesuffix(b".jpg"))
        body = self._photos[number]
        is_last = self._closes or b"connection: close" in request.lower()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if is_last else 'keep-alive'}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        if is_last:
            self._transport.close()
