"""What every request passes first: its API key, the limits of all requests together, the log and the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emu.serve.errors import ApiError, ErrorResponse
from emu.serve.keys import Keys
from emu.serve.limits import Limits
from emu.serve.metrics import Metrics

log = logging.getLogger(__name__)

GUARDED = "/v1/"
"""Paths that need a key, where there are keys."""
NOBODY_READS = 499
"""Status in the log and the metrics of a request whose client went away before its response began."""


@dataclass
class Traffic:
    """The requests of the API that are handled now; while it drains, new ones are refused."""

    num_requests: int = 0
    num_bytes: int = 0
    is_draining: bool = False


class Gate:
    """ASGI middleware; a refused request costs neither a read of its body nor any work of a route."""

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, traffic: Traffic, keys: Keys | None
    ) -> None:
        self.app, self.limits, self.metrics, self.traffic = app, limits, metrics, traffic
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = NOBODY_READS

        def watched_send(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)  # not awaited here: called for every piece of text

        name: str | None = None
        self.metrics.in_progress.inc()
        try:
            is_guarded = path_of(scope).startswith(GUARDED)
            try:
                name = self._admit(scope) if is_guarded and scope["method"] != "OPTIONS" else None
            except ApiError as error:
                await error_response(error.response)(scope, receive, watched_send)
            else:
                await self._counted(scope, receive, watched_send, is_guarded)
        finally:
            if name is not None and self.keys is not None:
                self.keys.leave(name)
            self.metrics.in_progress.dec()
            self._note(scope, status, time.perf_counter() - begun, name)

    def _admit(self, scope: Scope) -> str | None:
        """The name of the request's key, if there are keys; raises `ApiError`."""
        if self.traffic.is_draining:
            raise ApiError(503, "the server is about to stop", code="draining")
        if self.traffic.num_requests >= self.limits.max_parallel:
            message = f"{self.traffic.num_requests} requests are handled, and no more may"
            raise ApiError(503, f"{message}; try again soon", code="overloaded")
        if self.keys is None:
            return None
        return self.keys.admit(Headers(scope=scope).get("authorization"))

    async def _counted(self, scope: Scope, receive: Receive, send: Send, is_guarded: bool) -> None:
        """Runs the request; its bytes count until its response has ended."""
        num_bytes = 0

        async def counted_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            number = len(message.get("body", b""))
            if self.traffic.num_bytes + number > self.limits.max_bytes_in_flight:
                raise ApiError(
                    503,
                    f"the bodies of all requests have {self.traffic.num_bytes} bytes, and no more may; "
                    "try again soon",
                    code="overloaded",
                )
            num_bytes += number
            self.traffic.num_bytes += number
            return message

        self.traffic.num_requests += is_guarded
        try:
            await self.app(scope, counted_receive, send)
        finally:
            self.traffic.num_requests -= is_guarded
            self.traffic.num_bytes -= num_bytes

    def _note(self, scope: Scope, status: int, seconds: float, key: str | None) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", "other")
        method = scope["method"] if path != "other" else "other"
        self.metrics.requests.labels(path, method, str(status)).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        log.info(
            "request=%s method=%s status=%d key=%s seconds=%.3f",
            path, method, status, key or "none", seconds,
        )  # fmt: skip


def path_of(scope: Scope) -> str:
    """The path below the prefix that the application is reached under."""
    path, prefix = scope["path"], scope.get("root_path", "")
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path


def error_response(error: ErrorResponse) -> Response:
    """The response of an error in OpenAI's form."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.status == 503:
        headers["Retry-After"] = "5"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["Connection"] = "close"  # what is left of the body is not read
    return JSONResponse(error.as_json(), error.status, headers)
