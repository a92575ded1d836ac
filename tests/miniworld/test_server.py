"""The server of the synthetic world responds to every kind of link as the table of kinds says."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest
from PIL import Image

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import IMAGE_HOST, LINK_KINDS, link_url
from pipelines.miniworld.mmc4 import read_truth, write_mmc4
from pipelines.miniworld.render import FileForm, encode
from pipelines.miniworld.scene import Scene, Thing
from pipelines.miniworld.server import ImageServer

STAR = Scene("mint", 1.0, (Thing("star", "red", "large", 0.5, 0.5, 0.2, 0.0),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for form in ("jpg", "png", "webp"):
        (folder / f"star.{form}").write_bytes(encode(STAR, FileForm(form, 160)))
    (folder.parent / "secret.jpg").write_bytes(b"not in the folder")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[ImageServer]:
    with ImageServer(folder, retry_after_s=3) as server:
        yield server


def ask(
    server: ImageServer, path: str, method: str = "GET"
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def test_images_are_complete_and_have_their_content_type(server: ImageServer, folder: Path):
    types = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
    for form, content_type in types.items():
        status, headers, body = ask(server, f"/image/star.{form}")
        assert (status, headers["Content-Type"]) == (200, content_type)
        assert body == (folder / f"star.{form}").read_bytes()


def test_every_kind_of_link_has_its_response(server: ImageServer, folder: Path):
    image = (folder / "star.jpg").read_bytes()
    expected = {
        "image": (200, image),
        "redirect": (302, b""),
        "throttled": (429, b"slow down\n"),
        "flaky": (500, b"try again\n"),
        "not_found": (404, b"no such path\n"),
        "forbidden": (403, b"not for you\n"),
        "empty": (200, b""),
        "truncated": (200, image[: len(image) // 2]),
        "noai": (200, image),
        "redirect_loopback": (302, b""),
    }
    hosted = {kind for kind in LINK_KINDS if IMAGE_HOST in link_url(kind, "star.jpg")}
    assert hosted - set(expected) == {"html", "huge"}
    for kind, (status, body) in expected.items():
        response = ask(server, f"/{kind}/star.jpg")
        assert (response[0], response[2]) == (status, body), kind


def test_redirects_lead_where_they_should(server: ImageServer):
    assert ask(server, "/redirect/star.png")[1]["Location"] == "/image/star.png"
    assert ask(server, "/redirect_loopback/star.png")[1]["Location"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("kind", ["throttled", "flaky"])
def test_temporary_faults_end_after_the_first_request_for_each_link(
    server: ImageServer, folder: Path, kind: str
):
    first = [ask(server, f"/{kind}/star.{form}")[0] for form in ("jpg", "png")]
    assert all(status in (429, 500) for status in first)
    for form in ("jpg", "png"):
        status, _, body = ask(server, f"/{kind}/star.{form}")
        assert (status, body) == (200, (folder / f"star.{form}").read_bytes())


def test_headers_of_throttled_and_noai_links(server: ImageServer):
    assert ask(server, "/throttled/star.jpg")[1]["Retry-After"] == "3"
    assert ask(server, "/noai/star.jpg")[1]["X-Robots-Tag"] == "noai"


def test_a_web_page_is_declared_as_jpeg(server: ImageServer):
    status, headers, body = ask(server, "/html/star.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert body.startswith(b"<!doctype html>")


def test_the_huge_image_is_a_small_and_valid_file(server: ImageServer):
    _, headers, body = ask(server, "/huge/star.png")
    assert headers["Content-Type"] == "image/png" and len(body) < 60_000
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(io.BytesIO(body))
        assert image.size == (20_000, 20_000)
        assert image.getextrema() == (0, 0)  # decodes to its end
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize(
    "path",
    [
        "/image/missing.jpg",
        "/image/../secret.jpg",
        "/image/%2e%2e/secret.jpg",
        "/image//etc/passwd",
        "/unknown_kind/star.jpg",
        "/",
        "/image/star.jpg?x=1",
        "/image/star.exe",
    ],
)
def test_nothing_else_is_served(server: ImageServer, path: str):
    assert ask(server, path)[0] == HTTPStatus.NOT_FOUND


def test_head_has_the_length_and_no_body(server: ImageServer, folder: Path):
    status, headers, body = ask(server, "/image/star.jpg", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == (folder / "star.jpg").stat().st_size


def test_one_connection_serves_many_requests_without_delay(server: ImageServer):
    connection = http.client.HTTPConnection(server.address, timeout=10)
    times_s = []
    for _ in range(51):
        start = time.monotonic()
        connection.request("GET", "/image/star.jpg")
        assert connection.getresponse().read()
        times_s.append(time.monotonic() - start)
    connection.close()
    # a delayed acknowledgement takes 40 ms, for every request but the first
    assert min(times_s[1:]) < 0.03


def test_many_clients_at_once(server: ImageServer):
    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(lambda _: ask(server, "/throttled/star.webp")[0], range(200)))
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(429) == 1


def test_the_port_is_free_again_afterwards(folder: Path):
    with ImageServer(folder) as first:
        port = int(first.address.split(":")[1])
        assert first.allow_host == f"{IMAGE_HOST}=127.0.0.1:{port}"
    with ImageServer(folder, port=port) as second:
        assert ask(second, "/image/star.jpg")[0] == 200


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        ImageServer(tmp_path / "nowhere")


def test_the_links_of_a_world_agree_with_its_ground_truth(tmp_path: Path):
    config = MiniworldConfig(num_documents=46, num_shards=1, bad_share=0.5)
    write_mmc4(config, tmp_path / "w")
    with ImageServer(tmp_path / "w" / "images") as server:
        for row in read_truth(tmp_path / "w"):
            if IMAGE_HOST not in row["raw_url"]:
                continue
            path = row["raw_url"].removeprefix(f"http://{IMAGE_HOST}")
            status, headers, body = ask(server, path)
            if status in (429, 500):
                status, headers, body = ask(server, path)
            if status == 302 and headers["Location"].startswith("/"):
                status, headers, body = ask(server, headers["Location"])
            whole = row["file"] is not None and body == (tmp_path / "w" / row["file"]).read_bytes()
            arrives = status == 200 and whole and "X-Robots-Tag" not in headers
            assert arrives == row["arrives"], row["raw_url"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_job_serves_until_it_receives_a_signal(
    tmp_path: Path, repository: Path, number: signal.Signals
):
    command = [sys.executable, str(repository / "jobs" / "build_miniworld.py")]
    options = ["--out", str(tmp_path / "w"), "--num-documents", "3", "--serve", "--port", "0"]
    job = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        lines = iter(job.stdout.readline, "")
        address = next(line for line in lines if "http://" in line).split("http://")[1].split(",")
        name = json.loads((tmp_path / "w" / "truth.jsonl").read_text().split("\n")[0])["image_name"]
        connection = http.client.HTTPConnection(address[0], timeout=10)
        connection.request("GET", f"/image/{name}")
        assert connection.getresponse().status == 200
        connection.close()
        os.kill(job.pid, number)
        assert job.wait(timeout=20) == 0
    finally:
        job.kill()
        job.communicate()


def test_a_job_that_serves_is_silent(tmp_path: Path, repository: Path):
    command = [sys.executable, str(repository / "jobs" / "build_miniworld.py")]
    options = ["--out", str(tmp_path / "w"), "--num-documents", "3", "--serve", "--port", "0"]
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert job.stdout is not None
            assert any("build with" in line for line in iter(job.stdout.readline, ""))
            before = (tmp_path / "said").read_text()
            time.sleep(4)  # a status is written after 2 seconds
            assert (tmp_path / "said").read_text() == before
        finally:
            job.kill()
            job.communicate()
