"""Limits that a fetcher keeps: hosts, rates, deadlines, bytes, threads."""

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from pipelines.core.pipeline import Rejected
from pipelines.download.fetcher import FetchConfig, Fetcher
from tests.servers.misbehaviour import drip
from tests.servers.web import Call, Handler, WebServer, response


def slow(seconds: float, body: bytes = b"x") -> Handler:
    async def handle(call: Call) -> None:
        await asyncio.sleep(seconds)
        await call.respond(200, body)

    return handle


def test_results_keep_the_order_of_links_and_connections_are_kept(quick_config) -> None:
    handlers = {f"/{n}": slow(0.02 * (n % 3), b"%d" % n) for n in range(60)}
    with (
        WebServer(handlers) as server,
        Fetcher(quick_config(allow_host=(server.allow(),))) as fetcher,
    ):
        results = fetcher.fetch_many([server.url(f"/{n}") for n in range(60)])
        again = fetcher.fetch_many([server.url("/7"), "", server.url("/8")])
        assert [result.body for result in results] == [b"%d" % n for n in range(60)]
        assert [result.body for result in again] == [b"7", None, b"8"]
        assert len({request.connection for request in server.requests}) <= 8
        assert fetcher.fetch_many([]) == []


def test_a_host_gets_no_more_than_its_share_and_others_do_not_wait_for_it(quick_config) -> None:
    done: list[str] = []

    def noted(host: str) -> Handler:
        async def handle(call: Call) -> None:
            await asyncio.sleep(0.1)
            done.append(host)
            await call.respond(200, b"x")

        return handle

    with WebServer({"/a": noted("busy")}) as busy, WebServer({"/b": noted("free")}) as free:
        config = quick_config(
            allow_host=(busy.allow("a.example"), free.allow("b.example")), per_host=2
        )
        urls = [busy.url("/a", "a.example")] * 10 + [free.url("/b", "b.example")] * 2
        with Fetcher(config) as fetcher:
            started_s = time.monotonic()
            results = fetcher.fetch_many(urls)
        assert all(result.reason is None for result in results)
        assert (busy.most_at_once, free.most_at_once) == (2, 2)
        assert time.monotonic() - started_s >= 0.5
        assert done[-1] == "busy"


def test_concurrency_is_a_limit_over_all_hosts(quick_config) -> None:
    hosts = [f"h{n}.example" for n in range(12)]
    with WebServer({"/a": slow(0.05)}) as server:
        config = quick_config(allow_host=tuple(server.allow(host) for host in hosts), concurrency=3)
        with Fetcher(config) as fetcher:
            results = fetcher.fetch_many([server.url("/a", host) for host in hosts])
        assert all(result.reason is None for result in results)
        assert server.most_at_once == 3


def test_requests_per_second_to_one_host_are_limited(quick_config) -> None:
    with WebServer({"/a": response(200, b"x")}) as server:
        config = quick_config(allow_host=(server.allow(),), per_host_rate=20.0)
        with Fetcher(config) as fetcher:
            started_s = time.monotonic()
            fetcher.fetch_many([server.url("/a")] * 7)
        assert time.monotonic() - started_s >= 6 / 20.0


def test_waits_for_our_own_limits_do_not_use_up_the_deadline(quick_config) -> None:
    with WebServer({"/a": slow(0.15, bytes(60_000))}) as server:
        one_by_one = quick_config(allow_host=(server.allow(),), deadline_s=1.0, per_host=1)
        by_bytes = quick_config(
            allow_host=(server.allow(),), deadline_s=1.0, max_bytes=64_000, body_budget_bytes=64_000
        )
        for config in (one_by_one, by_bytes):
            with Fetcher(config) as fetcher:
                results = fetcher.fetch_many(
                    [server.url("/a")] * 16, lambda _, body: time.sleep(0.1) or len(body)
                )
            assert [result.value for result in results] == [60_000] * 16


def test_hosts_that_redirect_to_each_other_do_not_block_each_other(quick_config) -> None:
    def to(host: str, path: str) -> Handler:
        return response(302, headers=[("Location", f"http://{host}{path}")])

    handlers = {"/a": to("b.example", "/good"), "/b": to("a.example", "/good"), "/good": slow(0.01)}
    with WebServer(handlers) as server:
        allow = (server.allow("a.example"), server.allow("b.example"))
        with Fetcher(quick_config(allow_host=allow, per_host=1, per_host_rate=500.0)) as fetcher:
            urls = [server.url("/a", "a.example"), server.url("/b", "b.example")] * 10
            results = fetcher.fetch_many(urls)
        assert {result.reason for result in results} == {None}
        assert {result.final_url for result in results} == {
            "http://a.example/good",
            "http://b.example/good",
        }


def test_many_drips_end_together_at_their_deadline(quick_config) -> None:
    hosts = [f"h{n}.example" for n in range(4)]
    with WebServer({"/drip": drip(0.02)}) as server:
        config = quick_config(
            allow_host=tuple(server.allow(host) for host in hosts), deadline_s=0.4
        )
        with Fetcher(config) as fetcher:
            started_s = time.monotonic()
            results = fetcher.fetch_many([server.url("/drip", host) for host in hosts * 8])
            assert time.monotonic() - started_s < 8.0  # one after the other takes 12.8 s
        assert {result.reason for result in results} == {"timeout"}


def test_a_conversion_may_reject_and_its_errors_are_not_swallowed(quick_config) -> None:
    def convert(index: int, body: bytes) -> str:
        if index == 1:
            raise Rejected("image_corrupt", "by the test")
        if index == 2:
            raise ZeroDivisionError
        return threading.current_thread().name

    with (
        WebServer({"/a": response(200, b"x")}) as server,
        Fetcher(quick_config(allow_host=(server.allow(),))) as fetcher,
    ):
        good, bad = fetcher.fetch_many([server.url("/a")] * 2, convert)
        assert good.value is not None
        assert good.value.startswith("fetch-convert")
        assert (bad.reason, bad.detail, bad.value) == ("image_corrupt", "by the test", None)
        with pytest.raises(ZeroDivisionError) as caught:
            fetcher.fetch_many([server.url("/a")] * 20, convert)
        assert "link 2" in caught.value.__notes__[0]
        assert fetcher.fetch_many([server.url("/a")])[0].body == b"x"


def test_calls_from_several_threads_wait_for_each_other(quick_config) -> None:
    with (
        WebServer({"/a": slow(0.02)}) as server,
        Fetcher(quick_config(allow_host=(server.allow(),), per_host=3)) as fetcher,
        ThreadPoolExecutor(4) as threads,
    ):
        urls = [server.url("/a")] * 6
        calls = [threads.submit(fetcher.fetch_many, urls) for _ in range(4)]
        assert all(result.body == b"x" for call in calls for result in call.result(timeout=20))
        assert server.most_at_once == 3


def test_a_closed_fetcher_raises_and_leaves_no_threads() -> None:
    num_before = threading.active_count()
    fetcher = Fetcher(FetchConfig())
    assert fetcher.fetch_many([""])[0].reason == "url_missing"
    fetcher.close()
    fetcher.close()
    assert threading.active_count() == num_before
    with pytest.raises(RuntimeError, match="closed"):
        fetcher.fetch_many([""])


def test_a_forgotten_fetcher_closes_itself(quick_config) -> None:
    with WebServer({"/a": response(200, b"x")}) as server:
        program = (
            "from pipelines.download.fetcher import FetchConfig, Fetcher\n"
            f"fetcher = Fetcher(FetchConfig(allow_host=({server.allow()!r},)))\n"
            f"print(fetcher.fetch_many([{server.url('/a')!r}])[0].body)\n"
        )
        finished = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
        )
    assert (finished.stdout, finished.stderr) == ("b'x'\n", "")


def test_proxies_of_the_environment_are_not_used(
    quick_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        with (
            WebServer({"/a": response(200, b"x")}) as server,
            Fetcher(quick_config(allow_host=(server.allow(),))) as fetcher,
        ):
            assert fetcher.fetch_many([server.url("/a")])[0].body == b"x"


def test_a_fetcher_that_is_closed_in_the_middle_of_a_call_ends_the_call_and_is_silent(
    quick_config, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = {f"/{n}": slow(60) for n in range(6)}
    with WebServer(handlers) as server, ThreadPoolExecutor(1) as threads:
        fetcher = Fetcher(quick_config(allow_host=(server.allow(),)))
        call = threads.submit(fetcher.fetch_many, [server.url(f"/{n}") for n in range(6)])
        end = time.monotonic() + 30
        while not server.requests:
            assert time.monotonic() < end
            time.sleep(0.01)
        fetcher.close()
        assert isinstance(call.exception(timeout=30), CancelledError)
    del fetcher
    gc.collect()  # a task that is left would say so now
    assert "destroyed" not in caplog.text and "never" not in caplog.text
