"""The project's own fetcher and decoder meet exactly the troubles that the truth foretells."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.corpora.mmc4.rules import LINK_REASONS
from pipelines.download.fetcher import FetchConfig, Fetcher
from pipelines.images.normalise import ImageConfig, NormalisedImage, normalise_image
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4 import read_truth, write_mmc4
from pipelines.miniworld.scene import COLOURS
from pipelines.miniworld.server import ImageServer

REASONS_OF_KIND = {
    "not_found": {"not_found"},
    "forbidden": {"forbidden"},
    "html": {"html_not_image"},
    "empty": {"body_empty"},
    "truncated": {"image_truncated", "image_corrupt"},  # by format and by where the cut falls
    "noai": {"robots_refused"},
    "huge": {"image_too_many_pixels"},
    "loopback": {"address_refused"},
    "redirect_loopback": {"address_refused"},
    "local_file": {"scheme_refused"},
}


def test_the_road_finds_what_the_truth_foretells(tmp_path: Path):
    write_mmc4(MiniworldConfig(num_documents=60, bad_share=0.5), tmp_path / "w")
    rows = list(read_truth(tmp_path / "w"))
    images = ImageServer(tmp_path / "w" / "images", retry_after_s=0)
    with images, Fetcher(FetchConfig(allow_host=(images.allow_host,))) as fetcher:
        urls = [row["raw_url"] for row in rows]
        fetched = fetcher.fetch_many(urls, lambda _, body: normalise_image(body, ImageConfig()))
    reasons: dict[str, set[str]] = defaultdict(set)
    for row, result in zip(rows, fetched, strict=True):
        assert row["arrives"] == (result.reason is None), (row["raw_url"], result.reason)
        if result.reason is None:
            assert result.value is not None
            check_picture(result.value, row)
        else:
            reasons[row["link_kind"]].add(result.reason)
        if row["link_kind"] in ("throttled", "flaky"):
            assert result.attempts == 2
    assert {row["link_kind"] for row in rows} == set(LINK_KINDS)
    assert set(reasons) == set(REASONS_OF_KIND)
    for kind, found in reasons.items():
        assert found <= REASONS_OF_KIND[kind] <= set(LINK_REASONS)


def check_picture(picture: NormalisedImage, row: dict[str, Any]) -> None:
    """Upright and in its colours: things lie where the truth has them, whatever the file's form."""
    pixels = np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)
    assert pixels.shape == (picture.height, picture.width, 3)
    assert abs(picture.width / picture.height - row["width"] / row["height"]) < 0.02
    for thing in row["scene"]["things"]:
        x, y = int(thing["x"] * picture.width), int(thing["y"] * picture.height)
        assert np.abs(pixels[y, x] - COLOURS[thing["colour"]]).max() <= 25
