"""What curl, urllib and browsers read arrives: a real server sends the bytes, a real build takes the images."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.build_mmc4 import BuildMmc4, build_mmc4
from jobs.building import BuildOptions
from pipelines.core.pipeline import Rejected
from pipelines.download.fetcher import FetchConfig, Fetched, Fetcher
from pipelines.download.response_head import MAX_HEAD_BYTES, tidied
from pipelines.download.urls import parse_url
from schemas.manifest import manifest_from_json
from tests.servers.web import Call, Handler, WebServer, response

HOST = "img.example"


def raw(*pieces: bytes, pause_s: float = 0.0, close: bool = False) -> Handler:
    """Sends these bytes, piece by piece."""

    async def handle(call: Call) -> None:
        for piece in pieces:
            await call.send(piece)
            await asyncio.sleep(pause_s)
        if close:
            call.close()

    return handle


def coded(coding: str, body: bytes) -> Handler:
    return response(200, body, [("Content-Encoding", coding)])


def handlers(photo: bytes) -> dict[str, Handler]:
    ok, length = b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n" % len(photo)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(photo), photo)
    many = b"".join(b"X-%d: y\r\n" % n for n in range(150))
    return {
        "/plain": response(200, photo),
        "/images/pic.jpg": response(200, photo),
        "/ce_awschunked": coded("aws-chunked", photo),
        "/ce_utf8": coded("utf-8", photo),
        "/ce_none": coded("none", photo),
        "/ce_binary": coded("binary", photo),
        "/ce_mime": coded("image/jpeg", photo),
        "/ce_gzip_aws": coded("gzip, aws-chunked", gzip.compress(photo)),
        "/hdr_long": response(200, photo, [("Link", "<x>" * 3000)]),
        "/hdr_many": raw(ok + many + length + b"\r\n" + photo),
        "/chunked_cl": raw(ok + b"Transfer-Encoding: chunked\r\n" + length + b"\r\n" + chunked),
        "/cl_twice": raw(ok + length + length + b"\r\n" + photo),
        "/te_identity": raw(ok + b"transfer-encoding: Identity\r\n" + length + b"\r\n" + photo),
        "/hdr_nocolon": raw(ok + b"garbage\r\n" + length + b"\r\n" + photo),
        # beyond the recorded cases
        "/cl_list": raw(ok + b"Content-Length: %d, %d\r\n\r\n" % ((len(photo),) * 2) + photo),
        "/te_identity_to_end": raw(ok + b"Transfer-Encoding: identity\r\n\r\n" + photo, close=True),
        "/bare_lf": raw(b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(photo) + photo),
        "/folded": raw(ok + b"X-A: b\r\n\tc\r\n" + length + b"\r\n" + photo),
        "/hints": raw(
            b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n", ok + length, b"\r\n", photo
        ),
        "/in_pieces": raw(*(bytes([b]) for b in ok + length + b"\r"), b"\n" + photo),
        "/half_head": raw(ok + b"Content-Le", close=True),
        "/cl_differ": raw(ok + length + b"Content-Length: 7\r\n\r\n" + photo),
        "/no_http": raw(b"220 mail.example ESMTP", close=True),
        "/endless_head": raw(ok, *[b"X: " + b"y" * 60_000 + b"\r\n"] * (MAX_HEAD_BYTES // 50_000)),
    }


LOST = {
    "/half_head": "connection_lost",
    "/cl_differ": "response_malformed",
    "/no_http": "response_malformed",
    "/endless_head": "response_malformed",
}


@pytest.fixture(scope="module")
def served(photo: bytes) -> Iterator[WebServer]:
    with WebServer(handlers(photo)) as server:
        yield server


@pytest.fixture(scope="module")
def fetched(served: WebServer, photo: bytes, quick_config) -> dict[str, Fetched[None]]:
    """What each path leads to, twice, so that connections are kept and used again."""
    paths = list(handlers(photo)) * 2
    with Fetcher(quick_config(allow_host=(served.allow(HOST),), per_host=2, retries=0)) as fetcher:
        results = fetcher.fetch_many([served.url(path, HOST) for path in paths])
    return dict(zip(paths, results, strict=True))


@pytest.mark.parametrize("path", handlers(b""))
def test_responses_that_others_read_arrive_whole(fetched, photo: bytes, path: str) -> None:
    result = fetched[path]
    assert result.reason == LOST.get(path)
    assert result.body == (None if path in LOST else photo)


def test_a_proper_head_stays_as_it_is() -> None:
    head = b"HTTP/1.1 200 OK\r\nA: b\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 3\r\n\r\n"
    assert tidied(head) == head


LINKS = {
    "http://img.example/images\\pic.jpg": "http://img.example/images/pic.jpg",
    "http://img.example/web/../../../images/pic.jpg": "http://img.example/images/pic.jpg",
    "http://img.example/web/%2E%2e/./images/pic.jpg": "http://img.example/images/pic.jpg",
    "http://img.example/pl\nain": "http://img.example/plain",
    "ht\ttp://img.exa\r\nmple/plain": "http://img.example/plain",
    "http:\\\\img.example\\images\\pic.jpg": "http://img.example/images/pic.jpg",
    "http://i\u2764.example/plain": "http://xn--i-7iq.example/plain",
    "http://-foo.example/plain": "http://-foo.example/plain",
    "http://foo-.example/plain": "http://foo-.example/plain",
    "http://foo_bar.b\u00fccher.example/plain": "http://foo_bar.xn--bcher-kva.example/plain",
}


@pytest.mark.parametrize("text", LINKS)
def test_links_are_resolved_by_the_url_standard(text: str) -> None:
    assert str(parse_url(text).url) == LINKS[text]


@pytest.mark.parametrize(
    "text",
    [
        "http:\\\\127.0.0.1\\x.jpg",
        "http:/\t/127.1/x.jpg",
        "http://0x7f.1/x.jpg",
        "http://%31%32%37.0.0.1/x.jpg",
        "http://169.254.169.254./x.jpg",
        "http://１２７。0。0。1/x.jpg",
        "http://a.example/\\..\\@/../..//x/http://b",
        "http://[::ffff:169.254.169.254]/x.jpg",
        "http:///10.0.0.1/x.jpg",
    ],
)
def test_the_address_guard_remains_behind_the_standard(text: str, quick_config) -> None:
    """However a link spells it, what is connected to is checked."""

    async def private(host: str) -> list[str]:
        return ["10.0.0.1"]

    with Fetcher(quick_config(retries=0), lookup=private) as fetcher:
        (result,) = fetcher.fetch_many([text])
    assert result.reason == "address_refused"


def test_a_build_keeps_every_image_of_the_recorded_cases(
    tmp_path: Path, served: WebServer, repository: Path
) -> None:
    cases = repository / "tests" / "bug_cases"
    names = [HOST, "xn--i-7iq.example", "-foo.example", "foo-.example"]
    hosts = [served.allow(name) for name in [*names, "foo_bar.xn--bcher-kva.example"]]
    out = tmp_path / "out"
    options = BuildMmc4(
        tuple(str(path) for path in cases.glob("*.jsonl")),
        str(out),
        build=BuildOptions(runner="local"),
        fetch=FetchConfig(allow_host=tuple(hosts)),
    )
    build_mmc4(options)
    manifest = manifest_from_json((out / "manifest.json").read_text())
    num_links = sum(
        len(json.loads(line)["image_info"])
        for path in cases.glob("*.jsonl")
        for line in path.read_text().splitlines()
    )
    assert (manifest.links.total, manifest.links.kept) == (num_links, num_links)


def test_hosts_beyond_the_limits_of_dns_are_refused() -> None:
    for host in ("a..example", "a" * 64 + ".example", "a." * 127 + "example"):
        with pytest.raises(Rejected, match="no valid name"):
            parse_url(f"http://{host}/")
