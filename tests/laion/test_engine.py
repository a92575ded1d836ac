"""The engine img2dataset gives the same dataset as the native fetcher."""

import io
import sys
from pathlib import Path

import pytest

from jobs.build_laion import main
from pipelines.core.pipeline import Rejected
from pipelines.core.storage import Storage, read_parquet
from pipelines.download.config import FetchConfig
from pipelines.download.guarded_opener import GuardedOpener
from pipelines.download.img2dataset import Img2datasetFetcher, translate
from pipelines.download.reasons import FETCH_REASONS
from pipelines.images.normalise import IMAGE_REASONS
from pipelines.miniworld.laion import LaionSummary
from pipelines.miniworld.server import ImageServer
from schemas.manifest import manifest_from_json
from schemas.shard import LEDGERS
from schemas.tables import LEDGER

World = tuple[Path, LaionSummary]


@pytest.fixture(scope="module")
def datasets(laion_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same world, built by each engine."""
    folder, outs = laion_world[0], {}
    for engine in ("native", "img2dataset"):
        outs[engine] = tmp_path_factory.mktemp(engine) / "out"
        with ImageServer(folder / "images", retry_after_s=0) as server:
            words = ["--metadata", f"{folder}/metadata/*", "--out", str(outs[engine])]
            more = ["--runner", "local", "--engine", engine, "--fetch.backoff-s", "0.1"]
            hosts = ["--fetch.allow-host", server.allow_host, "--fetch.per-host", "32"]
            assert main([*words, *more, *hosts]) == 0
    return outs


def test_both_engines_give_the_same_shards(datasets: dict[str, Path]) -> None:
    native, other = datasets["native"], datasets["img2dataset"]
    for kind in ("shards", "index"):
        for file in sorted((native / kind).iterdir()):
            assert file.read_bytes() == (other / kind / file.name).read_bytes(), file.name


def test_both_engines_give_the_same_ledger(datasets: dict[str, Path]) -> None:
    ledgers = [
        read_parquet(Storage(str(out)), f"{LEDGERS}/laion-000000.parquet", LEDGER)
        for out in datasets.values()
    ]
    assert ledgers[0].to_pylist() == ledgers[1].to_pylist()


def test_the_engine_is_not_part_of_the_fingerprint(
    laion_world: World, datasets: dict[str, Path]
) -> None:
    found = [manifest_from_json((out / "manifest.json").read_text()) for out in datasets.values()]
    assert found[0].fingerprint == found[1].fingerprint


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("HTTP Error 404: Not Found", "not_found", "status 404"),
        ("HTTP Error 403: Forbidden", "forbidden", "status 403"),
        ("HTTP Error 429: Too Many Requests", "rate_limited", "status 429"),
        ("HTTP Error 503: Service Unavailable", "server_error", "status 503"),
        ("HTTP Error 418: I'm a teapot line", "status_unexpected", "status 418"),
        ("HTTP Error 302: Found", "redirect_without_target", None),
        (
            "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite "
            "loop.\nThe last 30x error message was:\nFound",
            "redirect_loop",
            None,
        ),
        ("Use of image disallowed by X-Robots-Tag directive", "robots_refused", None),
        ("<urlopen error [Errno -2] Name or service not known>", "host_not_found", None),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns_failed", None),
        ("<urlopen error [Errno 111] Connection refused>", "connect_refused", None),
        ("<urlopen error timed out>", "connect_timeout", None),
        ("The read operation timed out", "read_timeout", None),
        ("Remote end closed connection without response", "connection_lost", None),
        ("IncompleteRead(512 bytes read, 100 more expected)", "connection_lost", None),
        (
            "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed "
            "certificate (_ssl.c:1006)>",
            "tls_untrusted",
            None,
        ),
        ("<urlopen error [SSL: WRONG_VERSION_NUMBER] wrong version number>", "tls_failed", None),
        ("unknown url type: 'a.jpg'", "scheme_refused", None),
        ("no host given", "url_invalid", None),
        ("image too small", "image_too_small", None),
        ("image area too large", "image_too_many_pixels", None),
        ("aspect ratio too large", "image_too_elongated", None),
        ("Image decoding error", "image_corrupt", None),
        ("address_refused: loopback: 127.0.0.1", "address_refused", "loopback: 127.0.0.1"),
        ("something new\u2026", "engine_failed", "something new?"),
    ],
)
def test_texts_of_img2dataset_have_reasons(text: str, reason: str, detail: str | None) -> None:
    found = translate(text)
    assert (found.reason, found.detail) == (reason, detail)
    assert reason in {**FETCH_REASONS, **IMAGE_REASONS}


def test_links_that_it_would_follow_into_the_machine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    urls = [
        *(f"file://{tmp_path}/secret.jpg", "ftp://a.example/x.jpg", "data:image/png;base64,AAAA"),
        *("http://127.0.0.1:9/x.jpg", "http://0x7f000001:9/x.jpg", "http://user:word@a.example/"),
        *("", "not a url", "http://[::1]:9/x.jpg"),
    ]
    with Img2datasetFetcher(FetchConfig(retries=0)) as fetcher:
        found = fetcher.fetch_many(urls, lambda index, body: body)
    assert [f.reason for f in found] == [
        *("scheme_refused", "scheme_refused", "scheme_refused"),
        *("address_refused", "address_refused", "url_with_credentials"),
        *("url_missing", "url_invalid", "address_refused"),
    ]


def test_what_may_pass_is_tried_again_and_the_rest_is_not(laion_world: World) -> None:
    images = laion_world[0] / "images"
    names = sorted(p.name for p in images.iterdir())[:3]
    kinds = ("flaky", "throttled", "not_found")
    with ImageServer(images) as server:
        host = server.allow_host.partition("=")[0]
        urls = [f"http://{host}/{k}/{n}" for k, n in zip(kinds, names, strict=True)]
        config = FetchConfig(allow_host=(server.allow_host,), backoff_s=0.01, retries=2)
        with Img2datasetFetcher(config) as fetcher:
            found = fetcher.fetch_many(urls, lambda index, body: (index, body))
    assert [f.reason for f in found] == [None, None, "not_found"]
    assert [f.attempts for f in found] == [2, 2, 1]
    assert found[1].value == (1, (images / names[1]).read_bytes())


def test_bodies_above_the_limit_and_empty_ones_are_refused(laion_world: World) -> None:
    images = laion_world[0] / "images"
    name = max(images.iterdir(), key=lambda p: p.stat().st_size).name
    size = (images / name).stat().st_size
    with ImageServer(images) as server:
        host = server.allow_host.partition("=")[0]
        urls = [f"http://{host}/image/{name}", f"http://{host}/empty/{name}"]
        config = FetchConfig(allow_host=(server.allow_host,), max_bytes=size - 1)
        with Img2datasetFetcher(config) as fetcher:
            found = fetcher.fetch_many(urls, lambda index, body: body)
    assert [(f.reason, f.detail) for f in found] == [
        ("body_too_large", f"Content-Length {size}, limit {size - 1}"),
        ("body_empty", None),
    ]


def test_a_row_whose_conversion_is_refused_keeps_its_reason(laion_world: World) -> None:
    def refuse(index: int, body: bytes) -> bytes:
        raise Rejected("image_corrupt", f"link {index}, {len(io.BytesIO(body).read()) > 0}")

    images = laion_world[0] / "images"
    name = next(images.iterdir()).name
    with ImageServer(images) as server:
        url = f"http://{server.allow_host.partition('=')[0]}/image/{name}"
        with Img2datasetFetcher(FetchConfig(allow_host=(server.allow_host,))) as fetcher:
            (found,) = fetcher.fetch_many([url], refuse)
    assert (found.reason, found.detail) == ("image_corrupt", "link 0, True")


def test_the_opener_of_urllib_is_the_default_one_afterwards() -> None:
    import urllib.request

    with pytest.raises(ZeroDivisionError), GuardedOpener(FetchConfig(), "*/*").installed():
        raise ZeroDivisionError
    with urllib.request.urlopen("data:,hello") as response:
        assert response.read() == b"hello"


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path,
    laion_world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "img2dataset"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    words = ["--metadata", f"{laion_world[0]}/metadata/*", "--out", f"{tmp_path}/out"]
    assert main([*words, "--runner", "local", "--engine", "img2dataset"]) != 0
    error = capsys.readouterr().err
    assert "pip install 'emu-platform[img2dataset]'" in error and "Traceback" not in error
