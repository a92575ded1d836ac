"""The fetcher: takes links, returns for each the bytes or the reason why there are none.

    with Fetcher(FetchConfig()) as fetcher:
        fetched = fetcher.fetch_many(urls, convert=lambda index, body: normalise_image(body, images))

One event loop in its own thread, one HTTP session, one TLS context (creating one takes 30 ms of CPU; tools that
create one per request pay it each time), keep-alive connections, and limits on everything that a server decides:
see `FetchConfig`. Proxies of the environment are not used, cookies are dropped, no Referer is sent.
"""

import asyncio
import os
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, overload

import aiohttp
import certifi

from pipelines.core.pipeline import Ask, Rejected
from pipelines.download.breaker import CircuitBreaker, PausePolicy
from pipelines.download.config import FetchConfig, parse_allowed_hosts
from pipelines.download.host_leases import LeaseClient
from pipelines.download.host_queue import ByteBudget, HostQueue, Lease
from pipelines.download.request import LinkRequest, Received, Trace
from pipelines.download.response_head import MAX_LINE_BYTES, MAX_LINES, TolerantConnector
from pipelines.download.urls import (
    GuardedResolver,
    Lookup,
    Refusal,
    WebAddress,
    parse_url,
    refused_address,
    system_lookup,
)

__all__ = ["FetchConfig", "Fetched", "Fetcher"]

T = TypeVar("T")
V = TypeVar("V")
Convert = Callable[[int, bytes], T]

_CLOSE_S = 5.0
_KEEP_ALIVE_S = 2.0  # idle connections cost file descriptors; a host with links left is not idle
_DNS_TTL_S = 60
_DNS_THREADS = 16


@dataclass(frozen=True)
class Fetched(Generic[T]):
    """The result of one link: `reason` is None exactly if it was fetched (and converted)."""

    url: str
    body: bytes | None
    """The bytes; None where a `convert` was given, or with a reason."""
    reason: str | None
    """A word of `FETCH_REASONS`, or a reason that `convert` gave."""
    detail: str | None
    """More for a person; equal for equal responses."""
    content_type: str | None
    """As the server claims, without parameters. Not to be trusted."""
    final_url: str | None
    """Where the redirects ended."""
    attempts: int
    """Attempts made; 0 if the link was refused without a request. Depends on timing: keep it out of ledgers."""
    value: T | None = None
    """What `convert` returned."""


class Fetcher:
    """Fetches links, many at a time. To be closed, or used as a context manager.

    A call to `fetch_many` is meant for the links of one shard: its results are in memory together.
    The state of hosts (connections, circuit breakers, rates) is kept until the fetcher is closed.

    Args:
        config: limits and politeness.
        accept: the media types that are asked for (the header Accept).
        lookup: where the addresses of host names come from; None asks the operating system.
        refusal: which addresses are refused.
        now: seconds since 1970, for dates in Retry-After.
        ask: reaches the `LeaseTable` of all workers; without it, limits per host are those of this fetcher.
    """

    def __init__(
        self,
        config: FetchConfig,
        accept: str = "*/*",
        lookup: Lookup | None = None,
        refusal: Refusal = refused_address,
        now: Callable[[], float] = time.time,
        ask: Ask | None = None,
    ) -> None:
        self.config = config
        self._one_call = asyncio.Lock()  # also holds until an interrupted call has been unwound
        self._dns_threads = ThreadPoolExecutor(_DNS_THREADS, "fetch-dns")
        self._convert_threads = ThreadPoolExecutor(config.convert_threads, "fetch-convert")
        self._budget = ByteBudget(config.body_budget_bytes)
        self._queue: HostQueue[int] = HostQueue(
            config.per_host, config.per_host_rate, _pause_policy(config), is_leased=ask is not None
        )
        self._leases = None if ask is None else LeaseClient(self._queue, ask)
        self._resolver = GuardedResolver(
            lookup or system_lookup(self._dns_threads),
            parse_allowed_hosts(config.allow_host),
            config.connect_timeout_s,
            refusal,
        )
        self._now = now
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        sessions: list[aiohttp.ClientSession] = []
        # Also closes a fetcher that its owner forgot, or that was interrupted while it was created, at the
        # latest when the process ends.
        self._finalizer = weakref.finalize(
            self,
            _close,
            sessions,
            self._loop,
            self._thread,
            (self._dns_threads, self._convert_threads),
        )
        self._request = self._await(self._open(sessions, accept))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def fetch_many(self, urls: Sequence[str]) -> list[Fetched[None]]: ...
    @overload
    def fetch_many(self, urls: Sequence[str], convert: Convert[V]) -> list[Fetched[V]]: ...
    @overload
    def fetch_many(
        self, urls: Sequence[str], convert: Convert[V] | None = None
    ) -> list[Fetched[V]]: ...

    def fetch_many(
        self, urls: Sequence[str], convert: Convert[V] | None = None
    ) -> list[Fetched[V]]:
        """One result for each of `urls`, in their order.

        Args:
            urls: links as found in the input, however malformed.
            convert: called in another thread with the index of the link and its body as soon as the body
                has arrived; its result replaces the body. A `Rejected` from it is the link's reason; any
                other exception ends the call.

        Raises:
            OSError: this machine has run out of file descriptors or memory.
        """
        if not self._finalizer.alive:
            raise RuntimeError("the fetcher is closed; create a new one")
        return self._await(self._serialised(urls, convert))

    def close(self) -> None:
        """Closes connections and threads. Lookups in progress are abandoned."""
        self._finalizer()

    def _await(self, work: Coroutine[Any, Any, V]) -> V:
        """The result of `work` on the fetcher's own loop; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _open(self, sessions: list[aiohttp.ClientSession], accept: str) -> LinkRequest:
        config = self.config
        session = aiohttp.ClientSession(
            connector=TolerantConnector(
                limit=0,
                resolver=self._resolver,
                ssl=tls_context(config),
                ttl_dns_cache=_DNS_TTL_S,
                keepalive_timeout=_KEEP_ALIVE_S,
            ),
            timeout=aiohttp.ClientTimeout(
                sock_connect=config.connect_timeout_s, sock_read=config.read_timeout_s
            ),
            headers={
                "User-Agent": config.user_agent,
                "Accept": accept,
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_LINES,
        )
        sessions.append(session)
        breaker = CircuitBreaker(config.breaker_failures, config.breaker_pause_s, self._loop.time)
        return LinkRequest(config, session, self._resolver, self._queue, breaker, self._now)

    async def _serialised(
        self, urls: Sequence[str], convert: Convert[V] | None
    ) -> list[Fetched[V]]:
        async with self._one_call:
            return await self._fetch_all(urls, convert)

    async def _fetch_all(self, urls: Sequence[str], convert: Convert[V] | None) -> list[Fetched[V]]:
        results: dict[int, Fetched[V]] = {}
        addresses: dict[int, WebAddress] = {}
        for index, url in enumerate(urls):
            try:
                addresses[index] = parse_url(url)
                self._queue.add(addresses[index].host, index)
            except Rejected as rejected:
                results[index] = _failed(url, rejected, 0)

        async def work() -> None:
            while taken := await self._queue.take():
                trace, index = Trace(taken[0]), taken[1]
                try:
                    results[index] = await self._fetch_one(
                        urls[index], addresses.pop(index), trace, index, convert
                    )
                finally:
                    if trace.host:
                        self._queue.leave(trace.host)

        try:
            async with self._leased(), asyncio.TaskGroup() as group:
                for _ in range(min(self.config.concurrency, len(addresses))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            self._queue.clear()
        return [results[index] for index in range(len(urls))]

    @asynccontextmanager
    async def _leased(self) -> AsyncIterator[None]:
        """Keep the leases of hosts for the block, and give them back after it."""
        if self._leases is None:
            yield
            return
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._leases.keep())
                yield
                keeping.cancel()
        finally:
            await self._leases.release()

    async def _fetch_one(
        self,
        url: str,
        address: WebAddress,
        trace: Trace,
        index: int,
        convert: Convert[V] | None,
    ) -> Fetched[V]:
        lease = Lease(self._budget)
        try:
            received = await self._request.fetch(address, trace, lease)
            self._queue.leave(trace.host)
            trace.host = ""  # another request may start while we convert
            if convert is None:
                return _arrived(url, received, trace, received.body, None)
            value = await self._loop.run_in_executor(
                self._convert_threads, convert, index, received.body
            )
            return _arrived(url, received, trace, None, value)
        except Rejected as rejected:
            return _failed(url, rejected, trace.num_attempts)
        except Exception as error:
            error.add_note(f"while fetching link {index}: {url!r}")
            raise
        finally:
            lease.release()


def _close(
    sessions: Sequence[aiohttp.ClientSession],
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    executors: Sequence[ThreadPoolExecutor],
) -> None:
    if threading.current_thread() is thread:  # the last reference was dropped on the loop itself
        loop.create_task(_close_all(sessions)).add_done_callback(lambda _: loop.stop())
        return
    asyncio.run_coroutine_threadsafe(_close_all(sessions), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)


async def _close_all(sessions: Sequence[aiohttp.ClientSession]) -> None:
    # a call that was interrupted may be unwinding still: what is left of it needs the running loop
    calls = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in calls:
        task.cancel()
    if calls:
        await asyncio.wait(calls, timeout=_CLOSE_S)
    for session in sessions:
        await session.close()


def _arrived(
    url: str, received: Received, trace: Trace, body: bytes | None, value: V | None
) -> Fetched[V]:
    return Fetched(
        url,
        body,
        None,
        None,
        received.content_type,
        received.final_url,
        trace.num_attempts,
        value,
    )


def _failed(url: str, rejected: Rejected, num_attempts: int) -> Fetched[Any]:
    return Fetched(url, None, rejected.reason, rejected.detail, None, None, num_attempts)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _pause_policy(config: FetchConfig) -> PausePolicy:
    return PausePolicy(
        first_s=config.backoff_s,
        longest_s=config.deadline_s,
        max_in_row=config.breaker_failures,
        closed_s=config.breaker_pause_s,
        budget_s=config.host_budget_s,
    )


def tls_context(config: FetchConfig) -> ssl.SSLContext:
    """Trusts the authorities of the system, those of certifi where a slim system has none, and the user's."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or (paths.capath and os.listdir(paths.capath))):  # noqa: PTH208
        context.load_verify_locations(certifi.where())
    if config.ca_file is not None:
        context.load_verify_locations(config.ca_file)
    return context
