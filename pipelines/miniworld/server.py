"""A local HTTP server that stands for the web: it serves the image folder, with faults by path.

The response to `/KIND/NAME` is the one that `link_kinds.LINK_KINDS[KIND]` describes. The server listens on
127.0.0.1 only; a job reaches it with `--fetch.allow-host` and `ImageServer.allow_host`.

    python -m pipelines.miniworld.server DIR --port 8000
"""

from __future__ import annotations

import http.server
import logging
import re
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tyro

from pipelines.miniworld.link_kinds import IMAGE_HOST, REFUSED_ADDRESS

log = logging.getLogger(__name__)

_PATH = re.compile(r"/([a-z_]+)/([a-z0-9_-]+\.(?:jpg|png|webp))")
_CLIP_PATH = re.compile(r"/(videos/[0-9_]+/[0-9]+\.mp4)")
_CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}
_WEB_PAGE = (
    b"<!doctype html><html><head><title>Gone</title></head><body>It was here.</body></html>\n"
)
_HUGE_SIDE_PX = 20_000


@dataclass(frozen=True)
class Response:
    """The response to one request."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)


class ImageServer:
    """Serves `directory` in threads on 127.0.0.1; a context manager that stops the server at its end.

    Args:
        directory: the folder of image files.
        port: 0 selects a free port.
        retry_after_s: the `Retry-After` of a throttled response, in seconds.

    Raises:
        NotADirectoryError: the folder does not exist.
        OSError: the port is in use.
    """

    def __init__(self, directory: Path, port: int = 0, retry_after_s: int = 1):
        if not Path(directory).is_dir():
            raise NotADirectoryError(
                f"directory={str(directory)!r} is not a folder: give the images/ folder of a world "
                "written by emu build miniworld"
            )
        self._directory = Path(directory)
        self._retry_after_s = retry_after_s
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", port), _handler(self.response))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        """The address that it listens on, as IP:PORT."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def allow_host(self) -> str:
        """The value for `--fetch.allow-host` that maps the host of the images to this server."""
        return f"{IMAGE_HOST}={self.address}"

    def response(self, path: str) -> Response:
        """The response to a GET of `path`; unknown paths and kinds are 404."""
        clip = _CLIP_PATH.fullmatch(path)
        if clip is not None:
            return self.image(clip[1])
        match = _PATH.fullmatch(path)
        respond = _RESPONDERS.get(match[1]) if match else None
        if match is None or respond is None:
            return Response(HTTPStatus.NOT_FOUND, b"no such path\n")
        return respond(self, match[1], match[2])

    def is_first_request(self, kind: str, name: str) -> bool:
        """Whether this is the first request for this link."""
        with self._lock:
            is_first = f"{kind}/{name}" not in self._seen
            self._seen.add(f"{kind}/{name}")
        return is_first

    def image(self, name: str) -> Response:
        """The image file, or 404."""
        path = self._directory / name
        if not path.is_file():
            return Response(HTTPStatus.NOT_FOUND, b"no such image\n")
        return Response(body=path.read_bytes(), content_type=_CONTENT_TYPES[path.suffix])

    def throttled(self) -> Response:
        """429 with the configured `Retry-After`."""
        headers = {"Retry-After": str(self._retry_after_s)}
        return Response(HTTPStatus.TOO_MANY_REQUESTS, b"slow down\n", headers=headers)


def _image(server: ImageServer, kind: str, name: str) -> Response:
    return server.image(name)


def _redirect(server: ImageServer, kind: str, name: str) -> Response:
    return Response(HTTPStatus.FOUND, headers={"Location": f"/image/{name}"})


def _throttled(server: ImageServer, kind: str, name: str) -> Response:
    return server.throttled() if server.is_first_request(kind, name) else server.image(name)


def _flaky(server: ImageServer, kind: str, name: str) -> Response:
    if server.is_first_request(kind, name):
        return Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"try again\n")
    return server.image(name)


def _forbidden(server: ImageServer, kind: str, name: str) -> Response:
    return Response(HTTPStatus.FORBIDDEN, b"not for you\n")


def _html(server: ImageServer, kind: str, name: str) -> Response:
    return Response(body=_WEB_PAGE, content_type="image/jpeg")


def _empty(server: ImageServer, kind: str, name: str) -> Response:
    return Response(content_type="image/jpeg")


def _truncated(server: ImageServer, kind: str, name: str) -> Response:
    whole = server.image(name)
    return Response(whole.status, whole.body[: len(whole.body) // 2], whole.content_type)


def _noai(server: ImageServer, kind: str, name: str) -> Response:
    found = server.image(name)
    return Response(found.status, found.body, found.content_type, {"X-Robots-Tag": "noai"})


def _huge(server: ImageServer, kind: str, name: str) -> Response:
    return Response(body=huge_png(), content_type="image/png")


def _redirect_loopback(server: ImageServer, kind: str, name: str) -> Response:
    return Response(HTTPStatus.FOUND, headers={"Location": f"http://{REFUSED_ADDRESS}/{name}"})


_RESPONDERS: dict[str, Callable[[ImageServer, str, str], Response]] = {
    "image": _image,
    "redirect": _redirect,
    "throttled": _throttled,
    "flaky": _flaky,
    "forbidden": _forbidden,
    "html": _html,
    "empty": _empty,
    "truncated": _truncated,
    "noai": _noai,
    "huge": _huge,
    "redirect_loopback": _redirect_loopback,
}


@lru_cache(maxsize=1)
def huge_png(side_px: int = _HUGE_SIDE_PX) -> bytes:
    """A valid black one-bit PNG whose pixels take far more memory than its bytes."""
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    row = bytes(1 + (side_px + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may close the connection at any time; that is logged, not printed."""
        log.debug("client=%s request failed", client_address, exc_info=True)


def _handler(respond: Callable[[str], Response]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keep-alive
        wbufsize = -1  # head and body in one write: no delay by delayed acknowledgements
        timeout = 30  # seconds until an idle connection is closed
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(with_body=True)

        def do_HEAD(self) -> None:
            self._send(with_body=False)

        def _send(self, with_body: bool) -> None:
            response = respond(self.path)
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(response.body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler


@dataclass(frozen=True)
class ServeArguments:
    """Serves a folder of synthetic images on 127.0.0.1 until interrupted."""

    directory: tyro.conf.Positional[Path]
    """The images/ folder of a world written by jobs/build_miniworld.py."""
    port: int = 8377
    """Port on 127.0.0.1; 0 selects a free port, which is logged."""
    retry_after_s: int = 1
    """`Retry-After` of a throttled link, in seconds."""


def serve_until_stopped(server: ImageServer) -> None:
    """Serve until the process receives SIGINT or SIGTERM; must run in the main thread."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with server:
        stop.wait()


def main(arguments: ServeArguments) -> None:
    """Serve with these arguments; the address is logged to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        server = ImageServer(arguments.directory, arguments.port, arguments.retry_after_s)
    except NotADirectoryError as error:
        sys.exit(f"error: {error}")
    log.info("address=%s allow_host=%s", server.address, server.allow_host)
    serve_until_stopped(server)


if __name__ == "__main__":
    main(tyro.cli(ServeArguments))
