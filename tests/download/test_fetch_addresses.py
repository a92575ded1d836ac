"""Whom a fetcher talks to: refused addresses, rebinding, dead hosts, certificates."""

import asyncio
import socket
import ssl
from collections.abc import Sequence

import pytest
import trustme

from pipelines.download.fetcher import Fetcher
from pipelines.download.urls import refused_address
from tests.servers.web import WebServer, answer


def answers(*in_turn: Sequence[str]):
    """A lookup that gives one answer after another, and the last one for ever."""
    left = list(in_turn)

    async def lookup(host: str) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return lookup


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
    + ["[::]", "0.0.0.0", "localhost", "[::ffff:7f00:1]", "127.0.0.1."],
)
def test_loopback_is_not_asked_however_it_is_spelt(hurried, host: str) -> None:
    with WebServer({"/a": answer(200, b"x")}) as server, Fetcher(hurried()) as fetcher:
        result = fetcher.fetch_many([f"http://{host}:{server.port}/a"])[0]
        assert result.reason == "address_refused"
        assert server.requests == []


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]]
    + [["93.184.216.34", "127.0.0.1"], ["fe80::1%lo"], ["64:ff9b::7f00:1"]],
)
def test_names_of_refused_addresses_are_refused(hurried, addresses: list[str]) -> None:
    with WebServer({"/a": answer(200, b"x")}) as server:
        with Fetcher(hurried(), lookup=answers(addresses)) as fetcher:
            result = fetcher.fetch_many([f"http://sly.example:{server.port}/a"])[0]
        assert result.reason == "address_refused"
        assert server.requests == []


def test_rebinding_gains_nothing(hurried) -> None:
    """The name leads to a permitted address first, and to a refused one when it is asked again."""

    def refusal(address: str) -> str | None:
        return None if address == "127.0.0.1" else refused_address(address)

    with WebServer({"/a": answer(200, b"secret")}) as inner:
        target = f"http://sly.example:{inner.port}/a"
        with WebServer({"/a": answer(302, headers=[("Location", target)])}) as outer:
            lookup = answers(["127.0.0.1"], ["127.0.0.2"])
            with Fetcher(hurried(), lookup=lookup, refusal=refusal) as fetcher:
                result = fetcher.fetch_many([f"http://sly.example:{outer.port}/a"])[0]
            assert len(outer.requests) == 1
        assert inner.requests == []
    assert (result.reason, result.detail) == ("address_refused", "loopback: address of sly.example")


def test_an_allowed_host_opens_nothing_else(hurried) -> None:
    with WebServer({"/a": answer(200, b"x")}) as server:
        with Fetcher(hurried(allow_host=(server.allow(),))) as fetcher:
            urls = [server.url("/a"), f"http://127.0.0.1:{server.port}/a", "http://localhost/a"]
            reasons = [result.reason for result in fetcher.fetch_many(urls)]
        assert reasons == [None, "address_refused", "address_refused"]
        with Fetcher(hurried(allow_host=(f"127.0.0.1=127.0.0.1:{server.port}",))) as fetcher:
            urls = [f"http://127.0.0.1:{server.port}/a", "http://127.0.0.1:1/a"]
            assert [r.reason for r in fetcher.fetch_many(urls)] == [None, "address_refused"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no"), "host_not_found"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "dns_failed"),
        (UnicodeError("label too long"), "url_invalid"),
        (None, "dns_failed"),
    ],
)
def test_failing_lookups(hurried, error: Exception | None, reason: str) -> None:
    async def lookup(host: str) -> Sequence[str]:
        if error:
            raise error
        await asyncio.sleep(60)
        return []

    with Fetcher(hurried(connect_timeout_s=0.2, retries=1), lookup=lookup) as fetcher:
        result = fetcher.fetch_many(["http://nowhere.example/"])[0]
    assert (result.reason, result.attempts) == (reason, 2 if reason == "dns_failed" else 1)


def test_dead_hosts_are_left_alone_and_all_their_links_say_the_same(hurried) -> None:
    with socket.socket() as closed, WebServer({"/a": answer(200, b"x")}) as server:
        closed.bind(("127.0.0.1", 0))
        dead = f"dead.example=127.0.0.1:{closed.getsockname()[1]}"
        config = hurried(allow_host=(dead, server.allow()), dead_host_after=3, per_host=2)
        with Fetcher(config) as fetcher:
            urls = [f"http://dead.example/{n}" for n in range(40)] + [server.url("/a")] * 5
            *of_dead, live = fetcher.fetch_many(urls)[:41]
    assert {(result.reason, result.detail) for result in of_dead} == {("connect_refused", None)}
    assert 3 <= sum(result.attempts for result in of_dead) <= 4
    assert live.reason is None


def test_connections_that_are_not_taken_time_out(hurried) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        allow = f"full.example=127.0.0.1:{full.getsockname()[1]}"
        with Fetcher(hurried(allow_host=(allow,), connect_timeout_s=0.2, retries=1)) as fetcher:
            result = fetcher.fetch_many(["http://full.example/"])[0]
    assert (result.reason, result.attempts) == ("connect_timeout", 2)


def _tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_certificates_are_checked(hurried, authority) -> None:
    made, ca_file = authority
    handlers = {"/a": answer(200, b"x")}
    with (
        WebServer(handlers, _tls(made, "images.example")) as server,
        WebServer(handlers, _tls(made, "other.example")) as other,
        WebServer(handlers, greeting=b"HTTP/1.1 400 Speak plainly\r\n\r\n") as plain,
    ):
        allow = (server.allow(), other.allow("wrong.example"), plain.allow("plain.example"))
        urls = [server.url("/a"), other.url("/a", "wrong.example"), "https://plain.example/a"]
        with Fetcher(hurried(allow_host=allow)) as fetcher:
            assert fetcher.fetch_many(urls[:1])[0].reason == "tls_untrusted"
        with Fetcher(hurried(allow_host=allow, ca_file=ca_file)) as fetcher:
            results = fetcher.fetch_many(urls)
        assert [r.reason for r in results] == [None, "tls_untrusted", "tls_failed"]
        assert results[1].detail is not None
        assert "wrong.example" in results[1].detail
        assert other.requests == []
