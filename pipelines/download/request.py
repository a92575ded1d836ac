"""One link: its redirects, retries and deadline, up to the unpacked bytes of the body.

Bodies are read within the limits on bytes, as sent and as unpacked, and paid for from a shared budget.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import ClientResponse

from pipelines.core.pipeline import Rejected
from pipelines.download.breaker import HOST_FAILURES, CircuitBreaker, CircuitOpen, Origin
from pipelines.download.config import FetchConfig, agent_token, forbidding_directive
from pipelines.download.host_queue import HostQueue, Lease
from pipelines.download.reasons import (
    FAILURES,
    REDIRECTS,
    RETRYABLE,
    backoff_s,
    rejection_of,
    retry_after_s,
    status_rejection,
)
from pipelines.download.urls import GuardedResolver, WebAddress, join_redirect

_GOOD = frozenset({200, 203})
_OVERLOAD = frozenset({429, 503})
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits: 31 gzip, 15 zlib, -15 raw
_CODINGS = frozenset({*_WINDOW, "br", "zstd", "compress", "x-compress", "dcb", "dcz", "exi"})
"""The content codings that are registered (iana.org/assignments/http-parameters), identity aside."""


@dataclass(frozen=True)
class Received:
    """A good response."""

    body: bytes
    content_type: str | None
    final_url: str


@dataclass
class Trace:
    """The progress of a link; also valid when it fails."""

    host: str
    """The host of which the link holds a slot now; empty if none."""
    num_attempts: int = 0
    visited: set[str] = field(default_factory=set)
    """Addresses requested in the current attempt."""
    requesting: Origin | None = None
    """Where a request is in flight."""


class Deadline:
    """The time that a link has left. Waits for our own limits can be excluded."""

    def __init__(self, seconds: float) -> None:
        self._scope = asyncio.timeout(seconds)

    @property
    def left_s(self) -> float:
        """Seconds left."""
        when = self._scope.when()
        assert when is not None
        return when - asyncio.get_running_loop().time()

    async def untimed(self, wait: Awaitable[None]) -> None:
        """Awaits `wait` without counting the time."""
        left_s = self.left_s
        self._scope.reschedule(None)
        await wait
        self._scope.reschedule(asyncio.get_running_loop().time() + left_s)

    async def run(self, work: Callable[[], Awaitable[Received]]) -> Received:
        """The result of `work`; raises Rejected("timeout") when it takes too long."""
        try:
            async with self._scope:
                return await work()
        except TimeoutError:
            if self._scope.expired():
                raise Rejected("timeout") from None
            raise


class Overloaded(Rejected):
    """A response of 429 or 503, or of 408, 425 or 5xx with the header Retry-After: the host is to be left alone.

    Args:
        reason: rate_limited or server_error.
        detail: the status.
        asked_s: seconds of Retry-After; None without one.
    """

    def __init__(self, reason: str, detail: str | None, asked_s: float | None = None) -> None:
        super().__init__(reason, detail)
        self.asked_s = asked_s
        self.wait_s = 0.0
        """Seconds for which the host is paused."""


class LinkRequest:
    """Requests single links through one HTTP session."""

    def __init__(
        self,
        config: FetchConfig,
        session: aiohttp.ClientSession,
        resolver: GuardedResolver,
        queue: HostQueue[int],
        breaker: CircuitBreaker,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._session = session
        self._resolver = resolver
        self._queue = queue
        self._breaker = breaker
        self._now = now
        self._token = agent_token(config.user_agent)

    async def fetch(self, address: WebAddress, trace: Trace, lease: Lease) -> Received:
        """The response to `address`, redirects followed, retried while that may help.

        The caller holds a slot of `trace.host`, and frees the slot of the host that is there afterwards.
        The lease then holds the bytes of the body.

        Raises:
            Rejected: with a word of `FETCH_REASONS`.
        """
        deadline = Deadline(self._config.deadline_s)
        try:
            return await deadline.run(lambda: self._with_retries(address, trace, lease, deadline))
        except Rejected as rejected:
            if rejected.reason == "timeout":
                self._blame(trace, address, rejected)
            raise

    async def _with_retries(
        self, address: WebAddress, trace: Trace, lease: Lease, deadline: Deadline
    ) -> Received:
        while True:
            trace.visited.clear()
            try:
                return await self._follow(address, trace, lease, deadline)
            except CircuitOpen:
                raise
            except Rejected as rejected:
                lease.release()
                if rejected.reason not in RETRYABLE or trace.num_attempts > self._config.retries:
                    raise
                wait_s = self._wait_s(rejected, trace, address)
                if wait_s >= deadline.left_s:
                    raise
                if isinstance(rejected, Overloaded):
                    # Others may try the host first; the queue says when this link may.
                    self._queue.leave(trace.host)
                    trace.host = ""
            await asyncio.sleep(wait_s)

    def _wait_s(self, rejected: Rejected, trace: Trace, address: WebAddress) -> float:
        if isinstance(rejected, Overloaded):
            return rejected.wait_s
        return backoff_s(self._config.backoff_s, trace.num_attempts, str(address.url))

    def _blame(self, trace: Trace, address: WebAddress, rejected: Rejected) -> None:
        """Counts a deadline that has passed against the host that was being waited for."""
        if trace.requesting is not None:
            self._breaker.failed(trace.requesting, rejected)
            self._queue.timed_out(trace.requesting[0], self._config.deadline_s, rejected)

    async def _follow(
        self, address: WebAddress, trace: Trace, lease: Lease, deadline: Deadline
    ) -> Received:
        """One attempt: every hop up to the end of the redirects."""
        for _ in range(self._config.max_redirects + 1):
            await self._enter_host(address, trace, deadline)
            self._resolver.check_literal(address)
            self._check_host(address, trace)
            if not trace.visited:
                trace.num_attempts += 1
            trace.visited.add(str(address.url))
            trace.requesting = address.origin
            found = await self._hop(address, trace, lease, deadline)
            if isinstance(found, Received):
                return found
            if str(found.url) in trace.visited:
                raise Rejected("redirect_loop")
            address = found
        raise Rejected("too_many_redirects", f"limit {self._config.max_redirects}")

    async def _enter_host(self, address: WebAddress, trace: Trace, deadline: Deadline) -> None:
        """Changes the slot of one host for one of another; under a rate limit, also for a new one of the same."""
        has_requested = trace.num_attempts > 0
        if address.host == trace.host and not (self._config.per_host_rate and has_requested):
            return
        if trace.host:
            self._queue.leave(trace.host)
            trace.host = ""
        await deadline.untimed(self._queue.enter(address.host))
        trace.host = address.host

    def _check_host(self, address: WebAddress, trace: Trace) -> None:
        """Nothing, if the host may be asked; raises `CircuitOpen` after giving back the slot unused."""
        try:
            self._queue.check(address.host)
            self._breaker.check(address.origin)
        except CircuitOpen:
            self._queue.leave(trace.host, has_requested=False)
            trace.host = ""
            raise

    async def _hop(
        self, address: WebAddress, trace: Trace, lease: Lease, deadline: Deadline
    ) -> Received | WebAddress:
        """The response, or the address to which it redirects."""
        is_connected, started_at = False, asyncio.get_running_loop().time()
        try:
            async with self._request(address) as response:
                is_connected = True
                if response.status in REDIRECTS:
                    found = join_redirect(address, response.headers.get("Location", ""))
                else:
                    self._check(response)
                    found = await self._receive(response, address, lease, deadline)
        except FAILURES as error:
            rejected = rejection_of(error, is_connected)
            trace.requesting = None
            self._count(address, rejected, is_connected, started_at)
            raise rejected from None
        except Rejected as rejected:
            trace.requesting = None
            self._count(address, rejected, is_connected, started_at)
            raise
        trace.requesting = None
        self._queue.succeeded(address.host)
        self._breaker.succeeded(address.origin)
        return found

    def _request(self, address: WebAddress) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.get(address.url, allow_redirects=False)

    def _count(
        self, address: WebAddress, rejected: Rejected, is_connected: bool, started_at: float
    ) -> None:
        """Remembers what a request without a good response says about its host."""
        if rejected.reason in HOST_FAILURES:
            self._breaker.failed(address.origin, rejected)
        elif is_connected:
            self._breaker.succeeded(address.origin)
        if rejected.reason == "read_timeout":
            self._queue.timed_out(address.host, self._config.read_timeout_s, rejected)
        elif isinstance(rejected, Overloaded):
            plain = Rejected(rejected.reason, rejected.detail)
            rejected.wait_s = self._queue.overloaded(
                address.host, started_at, rejected.asked_s, plain
            )
        elif is_connected:
            self._queue.succeeded(address.host)

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """Nothing, if status and headers permit to read the body."""
        if response.status not in _GOOD:
            raise self._status_rejection(response.status, response.headers)
        if self._config.respect_robots_tag:
            tags = response.headers.getall("X-Robots-Tag", [])
            directive = forbidding_directive(tags, self._token)
            if directive:
                raise Rejected("robots_refused", directive)

    def _status_rejection(self, status: int, headers: Mapping[str, str]) -> Rejected:
        rejected = status_rejection(status)
        if rejected.reason in ("rate_limited", "server_error"):
            asked_s = retry_after_s(headers, self._now())
            if asked_s is not None or status in _OVERLOAD:
                return Overloaded(rejected.reason, rejected.detail, asked_s)
        return rejected

    async def _receive(
        self,
        response: aiohttp.ClientResponse,
        address: WebAddress,
        lease: Lease,
        deadline: Deadline,
    ) -> Received:
        bound = body_bound(response, self._config.max_bytes)
        if not lease.grow_now(bound):
            await deadline.untimed(lease.grow(bound))
        body = await read_body(response, self._config.max_bytes)
        lease.shrink(len(body))
        return Received(body, _media_type(response), str(address.url))


def _media_type(response: aiohttp.ClientResponse) -> str | None:
    value = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return value if value and value.isascii() and value.isprintable() else None


def body_bound(response: ClientResponse, max_bytes: int) -> int:
    """The largest size in bytes that the unpacked body can have.

    Raises:
        Rejected: body_too_large or body_empty by the declared length; encoding_unsupported.
    """
    packing = _packing(response)
    declared = response.content_length
    if declared is not None and declared > max_bytes:
        raise Rejected("body_too_large", f"Content-Length {declared}, limit {max_bytes}")
    if declared == 0:
        raise Rejected("body_empty")
    return max_bytes if declared is None or packing else declared


async def read_body(response: ClientResponse, max_bytes: int) -> bytes:
    """The unpacked body.

    Raises:
        Rejected: body_too_large, body_empty, encoding_unsupported or encoding_corrupt.
        aiohttp.ClientError: the connection broke.
    """
    packing = _packing(response)
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in response.content.iter_any():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise Rejected("body_too_large", f"more than {max_bytes} bytes")
        chunks.append(chunk)
    body = _unpack(chunks, packing, max_bytes) if packing else b"".join(chunks)
    if not body:
        raise Rejected("body_empty")
    return body


def _packing(response: ClientResponse) -> str | None:
    """The content coding of the body; None if it is as it should be.

    Servers also send names that are no coding (`aws-chunked`, `utf-8`, `none`, a media type): they change nothing.
    """
    values = ",".join(response.headers.getall("Content-Encoding", []))
    names = [name.strip().lower() for name in values.split(",")]
    codings = [name for name in names if name in _CODINGS]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _WINDOW:
        raise Rejected("encoding_unsupported", ", ".join(codings)[:64])
    return codings[0]


def _unpack(chunks: Iterable[bytes], packing: str, max_bytes: int) -> bytes:
    """The packed chunks unpacked, stopping at the first byte above the limit."""
    packed = b"".join(chunks)
    window = _WINDOW[packing]
    if packing == "deflate" and packed and not _has_zlib_header(packed):
        window = -15  # many servers send deflate without the zlib header that RFC 9110 asks for
    unpacker = zlib.decompressobj(window)
    try:
        body = unpacker.decompress(packed, max_bytes + 1)
    except zlib.error:
        raise Rejected("encoding_corrupt", packing) from None
    if len(body) > max_bytes:
        raise Rejected("body_too_large", f"more than {max_bytes} bytes when unpacked")
    if not unpacker.eof:
        raise Rejected("encoding_corrupt", f"{packing}, ends too early")
    return body


def _has_zlib_header(packed: bytes) -> bool:
    return packed[0] & 0x0F == 8 and len(packed) > 1 and (packed[0] << 8 | packed[1]) % 31 == 0
