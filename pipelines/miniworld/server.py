"""A local HTTP server that stands for the web: it serves the picture folder, and misbehaves by path.

A request for `/KIND/NAME` is answered as `link_kinds.LINK_KINDS[KIND]` says. The server listens on
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

from pipelines.miniworld.link_kinds import CLOSED_ADDRESS, IMAGE_HOST

log = logging.getLogger(__name__)

_PATH = re.compile(r"/([a-z_]+)/([a-z0-9_-]+\.(?:jpg|png|webp))")
_CONTENT_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_WEB_PAGE = (
    b"<!doctype html><html><head><title>Gone</title></head><body>It was here.</body></html>\n"
)
_HUGE_SIDE_PX = 20_000


@dataclass(frozen=True)
class Answer:
    """What the server says to one request."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)


class ImageServer:
    """Serves `directory` in threads on 127.0.0.1; a context manager, stopped at its end.

    Args:
        directory: the folder of picture files.
        port: 0 takes a free one.
        retry_after_s: what a throttled answer asks the client to wait, in seconds.

    Raises:
        NotADirectoryError: there is no such folder.
        OSError: the port is taken.
    """

    def __init__(self, directory: Path, port: int = 0, retry_after_s: int = 1):
        if not Path(directory).is_dir():
            raise NotADirectoryError(
                f"directory={str(directory)!r} is no folder: give the images/ folder of a world "
                "written by jobs/build_miniworld.py"
            )
        self._directory = Path(directory)
        self._retry_after_s = retry_after_s
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", port), _handler(self.answer))
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
        """Where it listens, as IP:PORT."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def allow_host(self) -> str:
        """The value for `--fetch.allow-host` that maps the pictures' host onto this server."""
        return f"{IMAGE_HOST}={self.address}"

    def answer(self, path: str) -> Answer:
        """The answer to a GET of `path`; unknown paths and kinds are 404."""
        match = _PATH.fullmatch(path)
        respond = _ANSWERS.get(match[1]) if match else None
        if match is None or respond is None:
            return Answer(HTTPStatus.NOT_FOUND, b"no such path\n")
        return respond(self, match[1], match[2])

    def is_first_visit(self, kind: str, name: str) -> bool:
        """Whether this server has not been asked for this link before."""
        with self._lock:
            is_first = f"{kind}/{name}" not in self._seen
            self._seen.add(f"{kind}/{name}")
        return is_first

    def picture(self, name: str) -> Answer:
        """The picture file, or 404."""
        path = self._directory / name
        if not path.is_file():
            return Answer(HTTPStatus.NOT_FOUND, b"no such picture\n")
        return Answer(body=path.read_bytes(), content_type=_CONTENT_TYPES[path.suffix])

    def throttled(self) -> Answer:
        """429 with the configured wait."""
        headers = {"Retry-After": str(self._retry_after_s)}
        return Answer(HTTPStatus.TOO_MANY_REQUESTS, b"slow down\n", headers=headers)


def _image(server: ImageServer, kind: str, name: str) -> Answer:
    return server.picture(name)


def _redirect(server: ImageServer, kind: str, name: str) -> Answer:
    return Answer(HTTPStatus.FOUND, headers={"Location": f"/image/{name}"})


def _throttled(server: ImageServer, kind: str, name: str) -> Answer:
    return server.throttled() if server.is_first_visit(kind, name) else server.picture(name)


def _flaky(server: ImageServer, kind: str, name: str) -> Answer:
    if server.is_first_visit(kind, name):
        return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"try again\n")
    return server.picture(name)


def _forbidden(server: ImageServer, kind: str, name: str) -> Answer:
    return Answer(HTTPStatus.FORBIDDEN, b"not for you\n")


def _html(server: ImageServer, kind: str, name: str) -> Answer:
    return Answer(body=_WEB_PAGE, content_type="image/jpeg")


def _empty(server: ImageServer, kind: str, name: str) -> Answer:
    return Answer(content_type="image/jpeg")


def _truncated(server: ImageServer, kind: str, name: str) -> Answer:
    whole = server.picture(name)
    return Answer(whole.status, whole.body[: len(whole.body) // 2], whole.content_type)


def _noai(server: ImageServer, kind: str, name: str) -> Answer:
    found = server.picture(name)
    return Answer(found.status, found.body, found.content_type, {"X-Robots-Tag": "noai"})


def _huge(server: ImageServer, kind: str, name: str) -> Answer:
    return Answer(body=huge_png(), content_type="image/png")


def _redirect_loopback(server: ImageServer, kind: str, name: str) -> Answer:
    return Answer(HTTPStatus.FOUND, headers={"Location": f"http://{CLOSED_ADDRESS}/{name}"})


_ANSWERS: dict[str, Callable[[ImageServer, str, str], Answer]] = {
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
    """A valid black one-bit PNG whose pixels take far more room than its bytes."""
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
        """Clients may hang up as they please; that is logged, not printed."""
        log.debug("client=%s request failed", client_address, exc_info=True)


def _handler(answer: Callable[[str], Answer]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keep-alive
        wbufsize = -1  # head and body leave together: no waiting for delayed acknowledgements
        timeout = 30  # seconds until an idle connection is closed
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(with_body=True)

        def do_HEAD(self) -> None:
            self._send(with_body=False)

        def _send(self, with_body: bool) -> None:
            reply = answer(self.path)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler


@dataclass(frozen=True)
class ServeArguments:
    """Serves a folder of drawn pictures on 127.0.0.1 until interrupted."""

    directory: tyro.conf.Positional[Path]
    """The images/ folder of a world written by jobs/build_miniworld.py."""
    port: int = 8377
    """Port on 127.0.0.1; 0 takes a free one, which is then logged."""
    retry_after_s: int = 1
    """Seconds that a throttled link asks its client to wait."""


def serve_until_stopped(server: ImageServer) -> None:
    """Serves until the process gets SIGINT or SIGTERM. For a main thread."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with server:
        stop.wait()


def main(arguments: ServeArguments) -> None:
    """Serves as the arguments say; the address is logged to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        server = ImageServer(arguments.directory, arguments.port, arguments.retry_after_s)
    except NotADirectoryError as error:
        sys.exit(f"error: {error}")
    log.info("address=%s allow_host=%s", server.address, server.allow_host)
    serve_until_stopped(server)


if __name__ == "__main__":
    main(tyro.cli(ServeArguments))
