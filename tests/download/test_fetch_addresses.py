"""Which servers a fetcher talks to: refused addresses, rebinding, the circuit breaker, certificates."""

import asyncio
import socket
import ssl
from collections.abc import Sequence

import pytest
import trustme

from pipelines.download.fetcher import Fetcher
from pipelines.download.urls import refused_address
from tests.servers.web import WebServer, response


def results(*in_order: Sequence[str]):
    """A lookup that returns one result after another, and then always the last one."""
    left = list(in_order)

    async def lookup(host: str) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return lookup


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
    + ["[::]", "0.0.0.0", "localhost", "[::ffff:7f00:1]", "127.0.0.1."],
)
def test_loopback_is_refused_in_every_spelling(quick_config, host: str) -> None:
    with WebServer({"/a": response(200, b"x")}) as server, Fetcher(quick_config()) as fetcher:
        result = fetcher.fetch_many([f"http://{host}:{server.port}/a"])[0]
        assert result.reason == "address_refused"
        assert server.requests == []


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]]
    + [["93.184.216.34", "127.0.0.1"], ["fe80::1%lo"], ["64:ff9b::7f00:1"]],
)
def test_names_of_refused_addresses_are_refused(quick_config, addresses: list[str]) -> None:
    with WebServer({"/a": response(200, b"x")}) as server:
        with Fetcher(quick_config(), lookup=results(addresses)) as fetcher:
            result = fetcher.fetch_many([f"http://rebinding.example:{server.port}/a"])[0]
        assert result.reason == "address_refused"
        assert server.requests == []


def test_dns_rebinding_is_refused(quick_config) -> None:
    """The name resolves to a permitted address first, and to a refused one the second time."""

    def refusal(address: str) -> str | None:
        return None if address == "127.0.0.1" else refused_address(address)

    with WebServer({"/a": response(200, b"secret")}) as inner:
        target = f"http://rebinding.example:{inner.port}/a"
        with WebServer({"/a": response(302, headers=[("Location", target)])}) as outer:
            lookup = results(["127.0.0.1"], ["127.0.0.2"])
            with Fetcher(quick_config(), lookup=lookup, refusal=refusal) as fetcher:
                result = fetcher.fetch_many([f"http://rebinding.example:{outer.port}/a"])[0]
            assert len(outer.requests) == 1
        assert inner.requests == []
    assert (result.reason, result.detail) == (
        "address_refused",
        "loopback: address of rebinding.example",
    )


def test_an_allowed_host_permits_nothing_else(quick_config) -> None:
    with WebServer({"/a": response(200, b"x")}) as server:
        with Fetcher(quick_config(allow_host=(server.allow(),))) as fetcher:
            urls = [server.url("/a"), f"http://127.0.0.1:{server.port}/a", "http://localhost/a"]
            reasons = [result.reason for result in fetcher.fetch_many(urls)]
        assert reasons == [None, "address_refused", "address_refused"]
        with Fetcher(quick_config(allow_host=(f"127.0.0.1=127.0.0.1:{server.port}",))) as fetcher:
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
def test_failing_lookups(quick_config, error: Exception | None, reason: str) -> None:
    async def lookup(host: str) -> Sequence[str]:
        if error:
            raise error
        await asyncio.sleep(60)
        return []

    with Fetcher(quick_config(connect_timeout_s=0.2, retries=1), lookup=lookup) as fetcher:
        result = fetcher.fetch_many(["http://nowhere.example/"])[0]
    assert (result.reason, result.attempts) == (reason, 2 if reason == "dns_failed" else 1)


def test_an_open_circuit_stops_requests_and_all_its_links_have_the_same_reason(
    quick_config,
) -> None:
    with socket.socket() as closed, WebServer({"/a": response(200, b"x")}) as server:
        closed.bind(("127.0.0.1", 0))
        refusing = f"refusing.example=127.0.0.1:{closed.getsockname()[1]}"
        config = quick_config(allow_host=(refusing, server.allow()), breaker_failures=3, per_host=2)
        with Fetcher(config) as fetcher:
            urls = [f"http://refusing.example/{n}" for n in range(40)] + [server.url("/a")] * 5
            *refused, good = fetcher.fetch_many(urls)[:41]
    assert {(result.reason, result.detail) for result in refused} == {("connect_refused", None)}
    assert 3 <= sum(result.attempts for result in refused) <= 4
    assert good.reason is None


def test_connections_that_are_not_accepted_time_out(quick_config) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        allow = f"full.example=127.0.0.1:{full.getsockname()[1]}"
        with Fetcher(
            quick_config(allow_host=(allow,), connect_timeout_s=0.2, retries=1)
        ) as fetcher:
            result = fetcher.fetch_many(["http://full.example/"])[0]
    assert (result.reason, result.attempts) == ("connect_timeout", 2)


def _tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_certificates_are_checked(quick_config, authority) -> None:
    made, ca_file = authority
    handlers = {"/a": response(200, b"x")}
    with (
        WebServer(handlers, _tls(made, "images.example")) as server,
        WebServer(handlers, _tls(made, "other.example")) as other,
        WebServer(handlers, greeting=b"HTTP/1.1 400 Speak plainly\r\n\r\n") as plain,
    ):
        allow = (server.allow(), other.allow("wrong.example"), plain.allow("plain.example"))
        urls = [server.url("/a"), other.url("/a", "wrong.example"), "https://plain.example/a"]
        with Fetcher(quick_config(allow_host=allow)) as fetcher:
            assert fetcher.fetch_many(urls[:1])[0].reason == "tls_untrusted"
        with Fetcher(quick_config(allow_host=allow, ca_file=ca_file)) as fetcher:
            results = fetcher.fetch_many(urls)
        assert [r.reason for r in results] == [None, "tls_untrusted", "tls_failed"]
        assert results[1].detail is not None
        assert "wrong.example" in results[1].detail
        assert other.requests == []
