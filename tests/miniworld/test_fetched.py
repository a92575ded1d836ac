"""The fetcher and the decoder of this project meet exactly the faults that the ground truth lists."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.download.fetcher import FetchConfig, Fetcher
from pipelines.download.reasons import FETCH_REASONS
from pipelines.images.normalise import IMAGE_REASONS, ImageConfig, NormalisedImage, normalise_image
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


def test_fetching_and_decoding_find_what_the_ground_truth_says(tmp_path: Path):
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
            check_image(result.value, row)
        else:
            reasons[row["link_kind"]].add(result.reason)
        if row["link_kind"] in ("throttled", "flaky"):
            assert result.attempts == 2
    assert {row["link_kind"] for row in rows} == set(LINK_KINDS)
    assert set(reasons) == set(REASONS_OF_KIND)
    for kind, found in reasons.items():
        assert found <= REASONS_OF_KIND[kind] <= {*FETCH_REASONS, *IMAGE_REASONS}


def check_image(image: NormalisedImage, row: dict[str, Any]) -> None:
    """Upright and in its colours: things are where the ground truth says, in every form of file."""
    pixels = np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB")).astype(int)
    assert pixels.shape == (image.height, image.width, 3)
    assert abs(image.width / image.height - row["width"] / row["height"]) < 0.02
    for thing in row["scene"]["things"]:
        x, y = int(thing["x"] * image.width), int(thing["y"] * image.height)
        assert np.abs(pixels[y, x] - COLOURS[thing["colour"]]).max() <= 25
