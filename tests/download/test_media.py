"""Media on disk beside links: what a path may be, and what becomes of it in a build."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from pipelines.core.pipeline import Rejected
from pipelines.core.run import run
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.download.fetcher import FetchConfig
from pipelines.download.media import MEDIA_REASONS, MediaFolder, is_web_address
from pipelines.miniworld.server import ImageServer
from pipelines.readers.jsonl import LineSource
from pipelines.transforms.fetch_links import Prior, has_retryable
from schemas.manifest import Manifest
from tests.mmc4.pages import COLOURS, page, samples, shown, write_images, write_pages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "media/a").mkdir(parents=True)
    (tmp_path / "media/a/x.bin").write_bytes(b"1234")
    (tmp_path / "media/empty").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "media"


@pytest.mark.parametrize("path", ["a/x.bin", "./a/x.bin", "a//x.bin", "a\\x.bin", " a/x.bin "])
def test_a_path_below_the_folder_is_read(folder: Path, path: str) -> None:
    assert MediaFolder(str(folder), 4).read(path) == b"1234"


def test_a_link_that_its_owner_put_into_the_folder_is_followed(folder: Path) -> None:
    (folder / "linked").symlink_to(folder.parent / "secret")
    assert MediaFolder(str(folder), 99).read("linked") == b"secret"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none", "media_missing"),
        ("a/x.bin/y", "media_unreadable"),
        ("x" * 4000, "media_unreadable"),
        ("../secret", "media_outside"),
        ("a/../../secret", "media_outside"),
        ("a\\..\\..\\secret", "media_outside"),
        ("/etc/passwd", "media_outside"),
        ("file:///etc/passwd", "media_outside"),
        ("c:\\x", "media_outside"),
        ("s3://bucket/x", "media_outside"),
        ("", "media_outside"),
        (".", "media_outside"),
        ("a\0b", "media_outside"),
        ("a", "media_unreadable"),
        ("empty", "media_empty"),
        ("pipe", "media_unreadable"),
        ("large", "media_too_large"),
    ],
)
def test_every_other_path_has_a_reason(folder: Path, path: str, reason: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "large").write_bytes(b"12345")
    with pytest.raises(Rejected) as caught:
        MediaFolder(str(folder), 4).read(path)
    assert caught.value.reason == reason
    assert reason in MEDIA_REASONS


def test_an_address_is_read_like_a_folder() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/media_test/a/x.bin", b"1234")
    try:
        media = MediaFolder("memory://media_test", 4)
        assert media.read("a/x.bin") == b"1234"
        with pytest.raises(Rejected, match="media_missing"):
            media.read("a/y.bin")
        with pytest.raises(Rejected, match="media_too_large"):
            MediaFolder("memory://media_test", 3).read("a/x.bin")
    finally:
        memory.rm("/media_test", recursive=True)


@pytest.mark.parametrize("link", ["http://a.example/x", "HTTPS://a.example", " https:a"])
def test_web_addresses_are_fetched(link: str) -> None:
    assert is_web_address(link)
    assert not is_web_address(f"folder/{link}")


def documents(tmp_path: Path) -> Path:
    """Three images of which one lies on disk, one has no name (so is fetched) and one is missing."""
    document = page(["red", "green", "blue"], list(COLOURS)[:3], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    for image, name in zip(
        document["image_info"], ["photos/red.png", None, "photos/blue.png"], strict=True
    ):
        image["image_name"] = name
    return write_pages(tmp_path / "d.jsonl", [document])


def test_a_build_takes_files_from_disk_fetches_the_rest_and_names_what_is_missing(
    tmp_path: Path,
) -> None:
    media, out = tmp_path / "media", tmp_path / "out"
    media.mkdir()
    images = write_images(media / "photos")
    blue = (images / "blue.png").read_bytes()
    (images / "blue.png").unlink()
    source = LineSource([str(documents(tmp_path))])

    def build(server: ImageServer, prior: Prior | None = None) -> Manifest:
        fetch = FetchConfig(allow_host=(server.allow_host,), backoff_s=0.01)
        pipeline = mmc4.pipeline(Build(source, fetch, str(media), prior), mmc4.Rules())
        redo = has_retryable(pipeline.reasons) if prior else None
        return run(pipeline, str(out), redo=redo, progress=False)

    served = write_images(tmp_path / "served")
    with ImageServer(served) as server:
        manifest = build(server)
        assert manifest.links.dropped == {"media_missing": 1}
        (sample,) = samples(out)
        assert shown(sample) == ["[red]", "red", "[green]", "green", "blue"]
        assert sample.meta["image_url"][0] == "photos/red.png"
        assert Image.open(io.BytesIO(sample.images[0].image or b"")).size == (48, 40)
        (images / "blue.png").write_bytes(blue)
        manifest = build(server, Prior(str(out)))
    assert manifest.links.dropped == {}
    assert shown(samples(out)[0]) == ["[red]", "red", "[green]", "green", "[blue]", "blue"]


def test_without_a_media_folder_a_path_is_no_address(tmp_path: Path) -> None:
    document = page(["red"], ["red"], [[1]])
    document["image_info"][0]["raw_url"] = "photos/red.png"
    source = LineSource([str(write_pages(tmp_path / "d.jsonl", [document]))])
    pipeline = mmc4.pipeline(Build(source), mmc4.Rules())
    manifest = run(pipeline, str(tmp_path / "out"), progress=False)
    assert manifest.links.dropped == {"url_invalid": 1}
    assert "media_missing" not in pipeline.reasons
