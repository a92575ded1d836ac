"""urllib with the limits of the fetcher: for libraries that fetch by `urllib.request.urlopen`.

    with GuardedOpener(FetchConfig(), accept="image/*").installed():
        urllib.request.urlopen("http://photos.example/1.jpg")

Only http and https; every address is checked when the connection is made, so also after redirects; bodies end at
`max_bytes` and at `deadline_s`; X-Robots-Tag is respected; one TLS context for all requests; no proxies of the
environment, no cookies. What is refused raises `Rejected`.
"""

import http
import http.client
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from pipelines.core.pipeline import Rejected
from pipelines.download.config import (
    FetchConfig,
    agent_token,
    forbidding_directive,
    parse_allowed_hosts,
)
from pipelines.download.fetcher import tls_context
from pipelines.download.urls import checked_addresses, literal_address, parse_url, refused_address

_CHUNK = 1 << 16


class GuardedOpener:
    """An opener of urllib for one configuration.

    Args:
        config: limits; politeness towards hosts does not apply.
        accept: the header Accept.
    """

    def __init__(self, config: FetchConfig, accept: str) -> None:
        guard = _Guard(config)
        context = tls_context(config)
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            _Headers(config.user_agent, accept),
            _Redirects(config.max_redirects),
            *([_Robots(agent_token(config.user_agent))] if config.respect_robots_tag else []),
            _HTTP(guard),
            _HTTPS(guard, context),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make it the opener of `urllib.request.urlopen` in this process, then the default one again."""
        urllib.request.install_opener(self._opener)
        try:
            yield
        finally:
            urllib.request.install_opener(None)


class _Guard:
    """Makes connections to permitted addresses only."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self._allowed = parse_allowed_hosts(config.allow_host)

    def connect(self, origin: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        """What `http.client` calls to make a connection."""
        host, port = origin[0].lower().rstrip("."), origin[1]
        addresses = self._addresses(host, port)
        connected = socket.create_connection(addresses, self.config.connect_timeout_s, source)
        connected.settimeout(timeout)
        return connected

    def _addresses(self, host: str, port: int) -> tuple[str, int]:
        target, literal = self._allowed.get(host), literal_address(host)
        if literal is not None:
            word = None if target == (literal, port) else refused_address(literal)
            if word:
                raise Rejected("address_refused", f"{word}: {literal}")
            return literal, port
        return target or (checked_addresses(host, _lookup(host), refused_address)[0], port)


def _lookup(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class _Response(http.client.HTTPResponse):
    """A response whose body ends at a limit of bytes and at a deadline."""

    def __init__(self, config: FetchConfig, until_s: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._max_bytes, self._until_s = config.max_bytes, until_s

    def read(self, amt: int | None = None) -> bytes:
        """The body, or `amt` bytes of it; raises `Rejected`: body_too_large or timeout."""
        if amt is not None:
            return super().read(amt)
        limit = self._max_bytes
        if self.length is not None and self.length > limit:
            raise Rejected("body_too_large", f"Content-Length {self.length}, limit {limit}")
        chunks: list[bytes] = []
        declared, num_bytes = self.length, 0
        while chunk := self.read1(_CHUNK):
            num_bytes += len(chunk)
            chunks.append(chunk)
            if num_bytes > limit:
                raise Rejected("body_too_large", f"more than {limit} bytes")
            if time.monotonic() > self._until_s:
                raise Rejected("timeout")
        if declared is not None and num_bytes < declared:
            raise http.client.IncompleteRead(b"".join(chunks), declared - num_bytes)
        return b"".join(chunks)


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, guard: _Guard, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._create_connection = guard.connect
        until_s = time.monotonic() + guard.config.deadline_s
        self.response_class = partial(_Response, guard.config, until_s)  # type: ignore[assignment]


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, guard: _Guard, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._create_connection = guard.connect
        until_s = time.monotonic() + guard.config.deadline_s
        self.response_class = partial(_Response, guard.config, until_s)  # type: ignore[assignment]


class _HTTP(urllib.request.HTTPHandler):
    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPConnection, self._guard), req)


class _HTTPS(urllib.request.HTTPSHandler):
    def __init__(self, guard: _Guard, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._guard, self._tls = guard, context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connect = partial(_HTTPSConnection, self._guard, context=self._tls)
        return self.do_open(connect, req)


class _Headers(urllib.request.BaseHandler):
    """Sets the headers of the fetcher, whatever the library sends."""

    def __init__(self, user_agent: str, accept: str) -> None:
        self._headers = {"User-agent": user_agent, "Accept": accept}

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        for name, value in self._headers.items():
            request.add_header(name, value)
        return request

    https_request = http_request


class _Robots(urllib.request.BaseHandler):
    """Refuses what X-Robots-Tag forbids to the agent, as the fetcher reads it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        tags = response.headers.get_all("X-Robots-Tag", [])
        directive = forbidding_directive(tags, self._token)
        if directive and response.status == http.HTTPStatus.OK:
            raise Rejected("robots_refused", directive)
        return response

    https_response = http_response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses, as many as are permitted, and none twice."""

    max_repeats = max_redirections = 100  # above every limit of `FetchConfig`, which comes first

    def __init__(self, max_redirects: int) -> None:
        self._max_redirects = max_redirects

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        address = str(parse_url(newurl).url)
        visited = [req.full_url, *getattr(req, "redirect_dict", {})]
        if address in visited or newurl in visited:
            raise Rejected("redirect_loop")
        if len(getattr(req, "redirect_dict", {})) >= self._max_redirects:
            raise Rejected("too_many_redirects", f"limit {self._max_redirects}")
        return super().redirect_request(req, fp, code, msg, headers, address)
