"""Handlers for the ways in which web servers misbehave."""

import asyncio
import gzip
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache

from tests.servers.web import Call, Handler, head, response

HTML = b"<!DOCTYPE html>\n<html><head><title>Sorry</title></head><body>Not here.</body></html>"


def misbehaviours(image: bytes) -> dict[str, Handler]:
    """One path for each kind of misbehaviour; `image` is the body where a good response follows."""
    return {
        "/good.jpg": response(200, image, [("Content-Type", "image/jpeg")]),
        "/404.jpg": response(404, HTML),
        "/403.jpg": response(403),
        "/204.jpg": response(204),
        "/429.jpg": response(429),
        "/429-seconds.jpg": first_then(response(429, headers=[("Retry-After", "1")]), image),
        "/429-date.jpg": first_then(retry_after_date(1), image),
        "/429-late.jpg": response(429, headers=[("Retry-After", "86400")]),
        "/500-then-200.jpg": first_then(response(500), image),
        "/500.jpg": response(500),
        "/loop.jpg": response(302, headers=[("Location", "/loop2.jpg")]),
        "/loop2.jpg": response(301, headers=[("Location", "/loop.jpg")]),
        "/endless-redirect.jpg": redirect_further,
        "/to-nowhere.jpg": response(302),
        "/to-loopback.jpg": response(302, headers=[("Location", "http://127.0.0.1:9/x.jpg")]),
        "/to-metadata.jpg": response(302, headers=[("Location", "http://169.254.169.254/latest/")]),
        "/to-file.jpg": response(302, headers=[("Location", "file:///etc/passwd")]),
        "/to-good.jpg": response(307, headers=[("Location", "good.jpg")]),
        "/drip.jpg": drip(0.05),
        "/silent.jpg": silent,
        "/endless.jpg": endless,
        "/huge.jpg": claim_length(1 << 40),
        "/short.jpg": claim_length(len(image) + 1000, image),
        "/wrong-type.jpg": response(200, image, [("Content-Type", "text/html")]),
        "/html.jpg": response(200, HTML, [("Content-Type", "image/jpeg")]),
        "/truncated.jpg": response(200, image[: len(image) // 2]),
        "/bomb.png": response(200, png_bomb()),
        "/empty.jpg": response(200),
        "/noai.jpg": response(200, image, [("X-Robots-Tag", "noai")]),
        "/otherbot.jpg": response(200, image, [("X-Robots-Tag", "otherbot: noai")]),
        "/reset.jpg": reset,
        "/reset-then-200.jpg": first_then(reset, image),
        "/reset-in-body.jpg": reset_in_body,
        "/rubbish.jpg": rubbish,
        "/many-headers.jpg": response(200, image, [(f"X-{n}", "x" * 4000) for n in range(500)]),
        "/gzip.jpg": response(200, gzip.compress(image), [("Content-Encoding", "gzip")]),
        "/gzip-bomb.jpg": response(200, gzip_bomb(), [("Content-Encoding", "gzip")]),
        "/gzip-broken.jpg": response(200, image, [("Content-Encoding", "gzip")]),
        "/brotli.jpg": response(200, image, [("Content-Encoding", "br")]),
        "/cookie.jpg": response(200, image, [("Set-Cookie", "who=you; Path=/")]),
    }


def first_then(first: Handler, body: bytes) -> Handler:
    """`first` for the first request of a path, then 200 with `body`."""

    async def handle(call: Call) -> None:
        if call.request.nth == 0:
            await first(call)
        else:
            await call.respond(200, body)

    return handle


def retry_after_date(seconds: float, now: Callable[[], datetime] | None = None) -> Handler:
    """429 with a date as Retry-After, `seconds` after the Date of the response."""

    async def handle(call: Call) -> None:
        moment = now() if now else datetime.now(UTC)
        later = format_datetime(moment + timedelta(seconds=seconds), usegmt=True)
        date = format_datetime(moment, usegmt=True)
        await call.respond(429, headers=[("Date", date), ("Retry-After", later)])

    return handle


async def redirect_further(call: Call) -> None:
    """Always redirects to another address."""
    query = int(call.request.path.partition("?")[2] or 0) + 1
    await call.respond(302, headers=[("Location", f"/endless-redirect.jpg?{query}")])


def drip(seconds: float) -> Handler:
    """Sends one byte at a time, without end."""

    async def handle(call: Call) -> None:
        await call.send(head(200, [("Content-Length", "100000")]))
        while True:
            await call.send(b"x")
            await asyncio.sleep(seconds)

    return handle


async def silent(call: Call) -> None:
    """Accepts the request and sends nothing."""
    await asyncio.sleep(3600)


async def endless(call: Call) -> None:
    """Sends a body of unknown length that does not end."""
    await call.send(head(200, [("Transfer-Encoding", "chunked")]))
    while True:
        await call.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def claim_length(num_bytes: int, body: bytes = b"") -> Handler:
    """Claims `num_bytes`, sends `body`, and closes the connection."""

    async def handle(call: Call) -> None:
        await call.send(head(200, [("Content-Length", str(num_bytes))]) + body)
        call.close()

    return handle


async def reset(call: Call) -> None:
    """TCP reset instead of a response."""
    call.reset()


async def reset_in_body(call: Call) -> None:
    """TCP reset after the first bytes of the body."""
    await call.send(head(200, [("Content-Length", "100000")]) + bytes(1000))
    await asyncio.sleep(0.05)
    call.reset()


async def rubbish(call: Call) -> None:
    """Sends something that is not HTTP."""
    await call.send(b"220 mail.example ESMTP\r\n\x00\xff\r\n\r\n")
    call.close()


@lru_cache
def gzip_bomb(num_bytes: int = 50_000_000) -> bytes:
    """`num_bytes` zeros in some kilobytes."""
    return gzip.compress(bytes(num_bytes), 1)


@lru_cache
def png_bomb(side: int = 20_000) -> bytes:
    """A PNG of side x side grey pixels (1 bit) in some kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    row = bytes(1 + side // 8)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(row * side, 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
