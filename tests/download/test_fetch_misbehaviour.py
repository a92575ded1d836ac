"""The fetcher against a real server that misbehaves in every way."""

import re
from collections.abc import Iterator

import pytest

from pipelines.download.fetcher import Fetched, Fetcher
from pipelines.images.normalise import ImageConfig, normalise_image
from tests.servers.misbehaviour import misbehaviours
from tests.servers.web import WebServer

EXPECTED = {
    "/good.jpg": (None, 1),
    "/404.jpg": ("not_found", 1),
    "/403.jpg": ("forbidden", 1),
    "/204.jpg": ("status_unexpected", 1),
    "/429.jpg": ("rate_limited", 3),
    "/429-seconds.jpg": (None, 2),
    "/429-date.jpg": (None, 2),
    "/429-late.jpg": ("rate_limited", 1),
    "/500-then-200.jpg": (None, 2),
    "/500.jpg": ("server_error", 3),
    "/loop.jpg": ("redirect_loop", 1),
    "/loop2.jpg": ("redirect_loop", 1),
    "/endless-redirect.jpg": ("too_many_redirects", 1),
    "/to-nowhere.jpg": ("redirect_without_target", 1),
    "/to-loopback.jpg": ("address_refused", 1),
    "/to-metadata.jpg": ("address_refused", 1),
    "/to-file.jpg": ("scheme_refused", 1),
    "/to-good.jpg": (None, 1),
    "/drip.jpg": ("timeout", 1),
    "/silent.jpg": ("read_timeout", 3),
    "/endless.jpg": ("body_too_large", 1),
    "/huge.jpg": ("body_too_large", 1),
    "/short.jpg": ("connection_lost", 3),
    "/wrong-type.jpg": (None, 1),
    "/html.jpg": ("html_not_image", 1),
    "/truncated.jpg": ("image_truncated", 1),
    "/bomb.png": ("image_too_many_pixels", 1),
    "/empty.jpg": ("body_empty", 1),
    "/noai.jpg": ("robots_refused", 1),
    "/otherbot.jpg": (None, 1),
    "/reset.jpg": ("connection_lost", 3),
    "/reset-then-200.jpg": (
        None,
        None,
    ),  # the HTTP client asks again by itself on a kept connection
    "/reset-in-body.jpg": ("connection_lost", 3),
    "/rubbish.jpg": ("response_malformed", 1),
    "/many-headers.jpg": ("response_malformed", 1),
    "/gzip.jpg": (None, 1),
    "/gzip-bomb.jpg": ("body_too_large", 1),
    "/gzip-broken.jpg": ("encoding_corrupt", 1),
    "/brotli.jpg": ("encoding_unsupported", 1),
    "/cookie.jpg": (None, 1),
}


SHORT = {"deadline_s": 4.0, "read_timeout_s": 0.8}


def _host(path: str) -> str:
    """Each kind has a host of its own: what one does must not hold back the others."""
    return re.sub("[^a-z0-9]", "-", path.strip("/")) + ".example"


def _fetch_all(server: WebServer, quick_config) -> list[Fetched[bytes]]:
    images = ImageConfig()
    hosts = tuple(server.allow(_host(path)) for path in EXPECTED)
    with Fetcher(quick_config(allow_host=hosts, **SHORT)) as fetcher:
        return fetcher.fetch_many(
            [server.url(path, _host(path)) for path in EXPECTED],
            lambda _, body: normalise_image(body, images).data,
        )


@pytest.fixture(scope="module")
def runs(photo: bytes, quick_config) -> Iterator[tuple[WebServer, list[Fetched[bytes]]]]:
    """The server with the requests it received, and the result of every path."""
    with WebServer(misbehaviours(photo)) as server:
        yield server, _fetch_all(server, quick_config)


def test_every_path_is_covered(photo: bytes) -> None:
    assert set(EXPECTED) == set(misbehaviours(photo))


@pytest.mark.parametrize("path", EXPECTED)
def test_each_misbehaviour_has_its_reason(runs, path: str) -> None:
    server, results = runs
    result = results[list(EXPECTED).index(path)]
    reason, attempts = EXPECTED[path]
    assert result.url == server.url(path, _host(path))
    assert (result.reason, result.attempts) == (reason, attempts or result.attempts)
    assert (result.value is None) == (reason is not None)
    assert result.body is None


def test_small_good_images_arrive_byte_for_byte(runs, photo: bytes) -> None:
    _, results = runs
    assert {result.value for result in results if result.reason is None} == {photo}


def test_retries_reach_the_server_as_often_as_configured(runs) -> None:
    paths = runs[0].paths()
    assert paths["/404.jpg"] == paths["/noai.jpg"] == paths["/429-late.jpg"] == 1
    assert paths["/500.jpg"] == paths["/429.jpg"] == 3
    assert paths["/500-then-200.jpg"] == 2


def test_the_fetcher_sends_its_name_and_nothing_else_about_itself(runs) -> None:
    for request in runs[0].requests:
        assert request.headers["user-agent"].startswith("EmuPlatform/")
        assert request.headers["accept-encoding"] == "identity"
        assert not {"referer", "cookie", "authorization"} & set(request.headers)


def test_a_second_run_gives_the_same_results(runs, photo: bytes, quick_config) -> None:
    _, first = runs
    with WebServer(misbehaviours(photo)) as server:
        second = _fetch_all(server, quick_config)
    assert [(r.url, r.reason, r.detail, r.value) for r in first] == [
        (r.url, r.reason, r.detail, r.value) for r in second
    ]
