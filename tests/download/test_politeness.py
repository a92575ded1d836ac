"""Hosts that are overloaded, drip or stay silent: few requests, and no shard is held for long."""

import asyncio
import time

import pytest

from pipelines.download.fetcher import Fetcher
from tests.servers.misbehaviour import drip, silent
from tests.servers.web import Call, Handler, WebServer, response

NUM_LINKS = 120
PER_HOST, IN_ROW = 4, 3


@pytest.mark.parametrize(
    ("status", "headers", "reason", "most"),
    [
        (429, [], "rate_limited", PER_HOST + IN_ROW),
        (503, [], "server_error", PER_HOST + IN_ROW),
        (429, [("Retry-After", "0")], "rate_limited", PER_HOST + IN_ROW),
        (429, [("Retry-After", "86400")], "rate_limited", PER_HOST),
        (500, [("Retry-After", "86400")], "server_error", PER_HOST),
    ],
)
def test_an_overloaded_host_is_left_alone_for_all_its_links(
    quick_config, status: int, headers: list[tuple[str, str]], reason: str, most: int
) -> None:
    with WebServer({"/a": response(status, headers=headers), "/b": response(200, b"x")}) as server:
        config = quick_config(
            allow_host=(server.allow("busy.example"), server.allow("other.example")),
            per_host=PER_HOST,
            breaker_failures=IN_ROW,
        )
        with Fetcher(config) as fetcher:
            urls = [server.url(f"/a?{n}", "busy.example") for n in range(NUM_LINKS)]
            other = server.url("/b", "other.example")
            *results, good = fetcher.fetch_many([*urls, other])
            again = fetcher.fetch_many([server.url("/a?again", "busy.example")])
        assert {(r.reason, r.detail) for r in results} == {(reason, f"status {status}")}
        assert good.body == b"x"
        assert again[0].reason == reason
        assert again[0].attempts == 0
        assert sum(r.path.startswith("/a") for r in server.requests) <= most


def test_a_host_that_recovers_gives_every_link_and_no_request_in_a_pause(quick_config) -> None:
    arrivals: list[float] = []

    async def busy_at_first(call: Call) -> None:
        arrivals.append(time.monotonic())
        if len(arrivals) <= PER_HOST:
            await call.respond(429, headers=[("Retry-After", "1")])
        else:
            await call.respond(200, b"x")

    with WebServer({"/a": busy_at_first}) as server:
        config = quick_config(allow_host=(server.allow(),), per_host=PER_HOST)
        with Fetcher(config) as fetcher:
            results = fetcher.fetch_many([server.url(f"/a?{n}") for n in range(20)])
    assert {r.reason for r in results} == {None}
    assert len(arrivals) == 20 + PER_HOST
    first, *_ = arrivals[PER_HOST:]
    assert first - arrivals[0] >= 0.95


def test_requests_after_a_pause_begin_one_at_a_time(quick_config) -> None:
    at_once: list[int] = []

    async def busy_at_first(call: Call) -> None:
        at_once.append(server._num_now)
        if len(at_once) <= PER_HOST:
            await asyncio.sleep(0.05)
            await call.respond(429)
        else:
            await asyncio.sleep(0.01)
            await call.respond(200, b"x")

    with WebServer({"/a": busy_at_first}) as server:
        config = quick_config(allow_host=(server.allow(),), per_host=PER_HOST)
        with Fetcher(config) as fetcher:
            fetcher.fetch_many([server.url(f"/a?{n}") for n in range(30)])
    assert max(at_once[:PER_HOST]) == PER_HOST
    assert at_once[PER_HOST : PER_HOST + 3] == [1, 1, 2]
    assert max(at_once[PER_HOST:]) == PER_HOST


@pytest.mark.parametrize(("handler", "reason"), [(drip(0.02), "timeout"), (silent, "read_timeout")])
def test_a_host_that_drips_or_is_silent_trips_the_breaker(
    quick_config, handler: Handler, reason: str
) -> None:
    with WebServer({"/a": handler}) as server:
        config = quick_config(
            allow_host=(server.allow(),),
            per_host=PER_HOST,
            breaker_failures=IN_ROW,
            deadline_s=1.0 if reason == "timeout" else 30.0,
            read_timeout_s=0.5,
            retries=0,
        )
        with Fetcher(config) as fetcher:
            results = fetcher.fetch_many([server.url(f"/a?{n}") for n in range(3000)])
        assert {r.reason for r in results} == {reason}
        assert len(server.requests) <= 2 * PER_HOST + IN_ROW


def test_a_host_that_drips_now_and_then_costs_no_more_than_its_budget(quick_config) -> None:
    """Good responses between reset the breaker, so that only the budget bounds what the host costs."""
    dripping = drip(0.02)

    async def every_other(call: Call) -> None:
        if int(call.request.path.partition("?")[2]) % 2:
            await dripping(call)
        else:
            await call.respond(200, b"x")

    with WebServer({"/a": every_other}) as server:
        config = quick_config(
            allow_host=(server.allow(),), per_host=1, deadline_s=0.5, host_budget_s=1.2
        )
        with Fetcher(config) as fetcher:
            results = fetcher.fetch_many([server.url(f"/a?{n}") for n in range(500)])
        assert len(server.requests) == 6
        assert [r.reason for r in results[:6]] == [None, "timeout"] * 3
        assert {r.reason for r in results[6:]} == {"timeout"}
