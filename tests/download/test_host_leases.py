"""Limits per host over several workers: the table alone, and two fetchers against one server."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.download.fetcher import Fetcher
from pipelines.download.host_leases import LOST_S, TERM_S, LeaseTable, Report
from tests.servers.web import Call, WebServer, response

PER_HOST = 4


class Clock:
    """A clock that advances only when set."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Worker:
    """A worker of one host that starts and finishes requests as it may."""

    def __init__(self, name: str, table: LeaseTable, num_links: int) -> None:
        self.name, self.table, self.left = name, table, num_links
        self.slots = self.in_flight = 0

    @property
    def is_done(self) -> bool:
        return not self.left and not self.in_flight

    def start(self, count: int) -> None:
        count = max(0, min(count, self.left, self.slots - self.in_flight))
        self.left -= count
        self.in_flight += count

    def finish(self, count: int) -> None:
        self.in_flight -= min(count, self.in_flight)

    def exchange(self) -> None:
        wanted = min(PER_HOST, self.left + self.in_flight)
        self.slots = self.slots if wanted else 0
        demand = (self.slots, self.in_flight, wanted)
        reply = self.table(Report(self.name, True, {"a": demand}))
        self.slots = reply.slots.get("a", self.slots)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 12), min_size=1, max_size=9))
@settings(max_examples=80)
def test_workers_together_stay_within_the_limit_and_all_get_their_turn(
    seed: int, links: list[int]
) -> None:
    chance, clock = random.Random(seed), Clock()
    table = LeaseTable(PER_HOST, clock)
    workers = [Worker(f"w{n}", table, count) for n, count in enumerate(links)]
    for _ in range(4000):
        worker = chance.choice(workers)
        chance.choice([worker.start, worker.finish])(chance.randint(0, PER_HOST))
        worker.exchange()
        worker.start(chance.randint(0, PER_HOST))
        clock.now_s += 0.05
        assert sum(w.in_flight for w in workers) <= PER_HOST
        if all(w.is_done for w in workers):
            break
    assert all(w.is_done for w in workers)


def test_shares_are_even_and_come_back() -> None:
    table = LeaseTable(PER_HOST, Clock())
    first, second = Worker("a", table, 9), Worker("b", table, 9)
    first.exchange()
    second.exchange()
    assert (first.slots, second.slots) == (4, 0)
    first.exchange()  # two are taken from it
    first.exchange()  # it says that they are free
    second.exchange()
    assert (first.slots, second.slots) == (2, 2)
    second.left = 0
    second.exchange()
    first.exchange()
    assert (first.slots, second.slots) == (4, 0)


def test_beyond_the_limit_a_slot_is_passed_on_after_its_term() -> None:
    clock = Clock()
    table = LeaseTable(1, clock)
    first, second = Worker("a", table, 9), Worker("b", table, 9)
    for worker in (first, second, first, second):
        worker.exchange()
    assert (first.slots, second.slots) == (1, 0)
    clock.now_s = TERM_S + 0.1
    for worker in (first, first, second):
        worker.exchange()
    assert (first.slots, second.slots) == (0, 1)


def test_a_lost_worker_loses_its_slots_and_a_lost_table_is_told_again() -> None:
    clock = Clock()
    table = LeaseTable(PER_HOST, clock)
    Worker("lost", table, 9).exchange()
    clock.now_s = LOST_S + 1
    heir = Worker("heir", table, 9)
    heir.exchange()
    assert heir.slots == PER_HOST
    assert not table(Report("lost", is_full=False)).is_known
    assert not LeaseTable(PER_HOST, clock)(Report("heir", is_full=False)).is_known


def test_a_pause_reaches_the_other_workers() -> None:
    clock = Clock()
    table = LeaseTable(PER_HOST, clock)
    workers = [Worker("a", table, 9), Worker("b", table, 9)]
    for worker in workers:
        worker.exchange()
    refusal = Rejected("rate_limited", "status 429")
    table(Report("a", is_full=False, pauses={"a": (60.0, refusal)}))
    seconds, found = table(Report("b", is_full=False)).pauses["a"]
    assert (seconds, str(found)) == (60.0, str(refusal))
    late = table(Report("c", True, {"a": (0, 0, 1)}))
    assert late.pauses["a"][0] == 60.0


def local_ask(table: LeaseTable) -> Any:
    async def ask(report: Report) -> Any:
        await asyncio.sleep(0.005)
        return table(report)

    return ask


async def slow(call: Call) -> None:
    await asyncio.sleep(0.03)
    await call.respond(200, b"x")


def test_two_fetchers_keep_the_limit_of_one(quick_config) -> None:
    ask = local_ask(LeaseTable(PER_HOST))
    to_other = response(302, headers=[("Location", "http://other.example/good")])
    with WebServer({"/a": slow, "/r": to_other, "/good": slow}) as server:
        config = quick_config(
            allow_host=(server.allow(), server.allow("other.example")), per_host=PER_HOST
        )
        urls = [server.url(f"/a?{n}") for n in range(60)]
        with (
            Fetcher(config, ask=ask) as one,
            Fetcher(config, ask=ask) as two,
            ThreadPoolExecutor(2) as threads,
        ):
            found = list(threads.map(lambda f: f.fetch_many(urls), (one, two)))
            assert server.most_at_once <= PER_HOST
            redirected = list(
                threads.map(lambda f: f.fetch_many([server.url("/r")] * 5), (one, two))
            )
        assert all(r.body == b"x" for results in found + redirected for r in results)


def test_two_fetchers_share_what_an_overloaded_host_said(quick_config) -> None:
    ask = local_ask(LeaseTable(PER_HOST))
    with WebServer({"/a": response(429, headers=[("Retry-After", "3600")])}) as server:
        config = quick_config(allow_host=(server.allow(),), per_host=PER_HOST)
        urls = [server.url(f"/a?{n}") for n in range(60)]
        with Fetcher(config, ask=ask) as one, Fetcher(config, ask=ask) as two:
            first, second = one.fetch_many(urls), two.fetch_many(urls)
        assert {r.reason for r in first + second} == {"rate_limited"}
        assert {r.attempts for r in second} == {0}
        assert len(server.requests) <= PER_HOST


def test_an_error_of_the_table_ends_the_call(quick_config) -> None:
    async def ask(_: Report) -> Any:
        raise ConnectionError("the table is gone")

    with (
        Fetcher(quick_config(), ask=ask) as fetcher,
        pytest.raises(ConnectionError, match="is gone"),
    ):
        fetcher.fetch_many(["http://images.example/a"])
