"""From the exceptions of the HTTP client to reason words.

Details are our own words or fixed ones of the system, so that equal failures read equal. Whether a reset
connection shows as a closed one, as an error or as a body cut short depends on the moment, hence one word.

When to ask again, and how long to wait before.

One link: its redirects, its retries and its deadline, from the text to the bytes.
"""

import asyncio
import errno
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

import aiohttp

from pipelines.core.pipeline import Rejected
from pipelines.download.body import Lease, body_bound, read_body
from pipelines.download.config import FetchConfig, agent_token, forbidding_directive
from pipelines.download.host_queue import NO_CONNECTION, DeadHosts, HostIsDead, HostLanes
from pipelines.download.resolver import GuardedResolver
from pipelines.download.urls import WebAddress, join_redirect

FAILURES = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""What a request can raise because of the other side (or of the network between)."""

_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def rejection_of(error: Exception, is_connected: bool) -> Rejected:
    """The reason for `error`; `is_connected` says whether the response had begun.

    Raises:
        OSError: this machine, not the other side, has run out of something; links are not to blame.
    """
    cause = _os_error(error)
    if cause is not None and cause.errno in _OURS:
        raise OSError(
            cause.errno,
            "too few file descriptors or too little memory to fetch: raise `ulimit -n` or lower concurrency",
        ) from error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Rejected("tls_untrusted", _certificate_detail(error.certificate_error))
    if isinstance(error, aiohttp.ClientConnectorError):
        return _connect_rejection(error)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Rejected("connect_timeout")
    if isinstance(error, TimeoutError):
        return Rejected("read_timeout")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL | UnicodeError):
        return Rejected("response_malformed")
    if isinstance(error, ssl.SSLError) and not is_connected:
        return Rejected("tls_failed")
    return Rejected("connection_lost")


def _connect_rejection(error: aiohttp.ClientConnectorError) -> Rejected:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Rejected("dns_failed")
    cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Rejected("tls_untrusted", _certificate_detail(cause))
    if isinstance(error, aiohttp.ClientConnectorSSLError) or isinstance(cause, ssl.SSLError):
        return Rejected("tls_failed", getattr(cause, "reason", None))
    if isinstance(cause, ConnectionRefusedError):
        return Rejected("connect_refused")
    if isinstance(cause, TimeoutError):
        return Rejected("connect_timeout")
    if isinstance(cause, ConnectionResetError):
        return Rejected("connection_lost")
    return Rejected("connect_failed", errno.errorcode.get(cause.errno or 0))


def _certificate_detail(error: Exception) -> str | None:
    return getattr(error, "verify_message", None) or None


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind `error`, if there is one."""
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = getattr(error, "os_error", None) or error.__cause__
    return None


PASSING = frozenset(
    {
        "dns_failed",
        "connect_timeout",
        "read_timeout",
        "connection_lost",
        "rate_limited",
        "server_error",
    }
)
"""Reasons worth another attempt in the same run: what may have passed within seconds."""

_FOREVER_S = 1e9


class PatienceAsked(Rejected):
    """A refusal (429 or 5xx) that names the seconds to wait (Retry-After)."""

    def __init__(self, reason: str, detail: str | None, wait_s: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.wait_s = wait_s


def backoff_s(base_s: float, attempt: int, url: str) -> float:
    """Seconds to wait after attempt number `attempt` (from 1): `base_s` doubled each time, +-50 %.

    The jitter comes from the link rather than from chance: it spreads the links of a host all the same,
    and two runs behave alike.
    """
    fraction = zlib.crc32(f"{attempt} {url}".encode("utf-8", "replace")) / 2**32
    return base_s * 2 ** (attempt - 1) * (0.5 + fraction)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the header Retry-After asks for, 0 for a moment gone by; None without or unreadable.

    A date is measured against the server's own Date header where there is one, else against `now`
    (seconds since 1970).
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value) if len(value) < 10 else _FOREVER_S
    moment = _timestamp(value)
    if moment is None:
        return None
    sent = _timestamp(headers.get("Date", ""))
    return max(0.0, moment - (now if sent is None else sent))


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GOOD = frozenset({200, 203})
_BUSY = frozenset({408, 425, 429})
_FORBIDDEN = frozenset({401, 402, 403, 407, 451})
_GONE = frozenset({404, 410})


@dataclass(frozen=True)
class Received:
    """A good response."""

    body: bytes
    content_type: str | None
    final_url: str


@dataclass
class Trace:
    """How far a link has come; also told when it fails."""

    lane: str
    """The host whose turn the link has now."""
    num_attempts: int = 0
    visited: set[str] = field(default_factory=set)
    """Addresses asked in the present attempt."""


class Deadline:
    """The time that is left to a link. Waits for our own limits can be kept out of it."""

    def __init__(self, seconds: float) -> None:
        self._scope = asyncio.timeout(seconds)

    @property
    def left_s(self) -> float:
        """Seconds left."""
        when = self._scope.when()
        assert when is not None
        return when - asyncio.get_running_loop().time()

    async def untimed(self, wait: Awaitable[None]) -> None:
        """Awaits without using up time."""
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


class Exchange:
    """Fetches single links with one HTTP session."""

    def __init__(
        self,
        config: FetchConfig,
        session: aiohttp.ClientSession,
        resolver: GuardedResolver,
        lanes: HostLanes[int],
        dead_hosts: DeadHosts,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._session = session
        self._resolver = resolver
        self._lanes = lanes
        self._dead_hosts = dead_hosts
        self._now = now
        self._token = agent_token(config.user_agent)

    async def fetch(self, address: WebAddress, trace: Trace, lease: Lease) -> Received:
        """The response to `address`, redirects followed, retried while that may help.

        The caller has a turn of `trace.lane`, and gives the turn of whatever lane is there afterwards back.
        The lease then holds the bytes of the body.

        Raises:
            Rejected: with any reason that is not about the image itself.
        """
        deadline = Deadline(self._config.deadline_s)
        return await deadline.run(lambda: self._with_retries(address, trace, lease, deadline))

    async def _with_retries(
        self, address: WebAddress, trace: Trace, lease: Lease, deadline: Deadline
    ) -> Received:
        while True:
            trace.visited.clear()
            try:
                return await self._follow(address, trace, lease, deadline)
            except HostIsDead:
                raise
            except Rejected as rejected:
                lease.release()
                if rejected.reason not in PASSING or trace.num_attempts > self._config.retries:
                    raise
                wait_s = self._wait_s(rejected, trace, address)
                if wait_s >= deadline.left_s:
                    raise
                if isinstance(rejected, PatienceAsked):
                    self._lanes.pause(trace.lane, wait_s)
            await asyncio.sleep(wait_s)

    def _wait_s(self, rejected: Rejected, trace: Trace, address: WebAddress) -> float:
        if isinstance(rejected, PatienceAsked):
            return rejected.wait_s
        return backoff_s(self._config.backoff_s, trace.num_attempts, str(address.url))

    async def _follow(
        self, address: WebAddress, trace: Trace, lease: Lease, deadline: Deadline
    ) -> Received:
        """One attempt: hop by hop to the end of the redirects."""
        for _ in range(self._config.max_redirects + 1):
            await self._take_turn(address, trace, deadline)
            self._resolver.check_literal(address)
            self._dead_hosts.check(address.origin)
            if not trace.visited:
                trace.num_attempts += 1
            trace.visited.add(str(address.url))
            found = await self._hop(address, lease, deadline)
            if isinstance(found, Received):
                return found
            if str(found.url) in trace.visited:
                raise Rejected("redirect_loop")
            address = found
        raise Rejected("too_many_redirects", f"limit {self._config.max_redirects}")

    async def _take_turn(self, address: WebAddress, trace: Trace, deadline: Deadline) -> None:
        """Changes the turn at one host for one at another; under a rate limit, also for a new one."""
        has_asked = trace.num_attempts > 0
        if address.host == trace.lane and not (self._config.per_host_rate and has_asked):
            return
        self._lanes.leave(trace.lane)
        trace.lane = ""
        await deadline.untimed(self._lanes.enter(address.host))
        trace.lane = address.host

    async def _hop(
        self, address: WebAddress, lease: Lease, deadline: Deadline
    ) -> Received | WebAddress:
        """The response, or the address to which it redirects."""
        is_connected = False
        try:
            async with self._request(address) as response:
                is_connected = True
                self._dead_hosts.answered(address.origin)
                if response.status in _REDIRECTS:
                    return join_redirect(address, response.headers.get("Location", ""))
                self._check(response)
                return await self._receive(response, address, lease, deadline)
        except FAILURES as error:
            rejected = rejection_of(error, is_connected)
            self._count(address, rejected, is_connected)
            raise rejected from None
        except Rejected as rejected:
            self._count(address, rejected, is_connected)
            raise

    def _request(self, address: WebAddress) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.get(address.url, allow_redirects=False)

    def _count(self, address: WebAddress, rejected: Rejected, is_connected: bool) -> None:
        if not is_connected and rejected.reason in NO_CONNECTION:
            self._dead_hosts.failed(address.origin, rejected)

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """Nothing, if status and headers let us take the body."""
        if response.status not in _GOOD:
            raise self._status_rejection(response.status, response.headers)
        if self._config.respect_robots_tag:
            tags = response.headers.getall("X-Robots-Tag", [])
            directive = forbidding_directive(tags, self._token)
            if directive:
                raise Rejected("robots_refused", directive)

    def _status_rejection(self, status: int, headers: Mapping[str, str]) -> Rejected:
        reason = "status_unexpected"
        if status in _BUSY or 500 <= status <= 599:
            reason = "rate_limited" if status in _BUSY else "server_error"
            wait_s = retry_after_s(headers, self._now())
            if wait_s is not None:
                return PatienceAsked(reason, f"status {status}", wait_s)
        elif status in _FORBIDDEN:
            reason = "forbidden"
        elif status in _GONE:
            reason = "not_found"
        return Rejected(reason, f"status {status}")

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
