"""Damaged files give an image or a reason, whatever the damage."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.core.pipeline import Rejected
from pipelines.images.normalise import (
    IMAGE_REASONS,
    ImageConfig,
    NormalisedImage,
    normalise_image,
)
from schemas.images import exif_orientation
from tests.download.drawn import encoded, png16, quadrants, turned

NOISE = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
FILES = [
    encoded(Image.fromarray(NOISE), "JPEG"),
    encoded(Image.fromarray(NOISE), "JPEG", progressive=True),
    encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    turned(6),
    turned(3, "WEBP"),
    encoded(Image.fromarray(NOISE), "PNG"),
    encoded(quadrants(48, 40).quantize(4), "PNG", transparency=1),
    png16(NOISE.astype(np.uint16) * 257),
    encoded(Image.fromarray(NOISE), "WEBP"),
    encoded(quadrants(48, 40).convert("RGBA"), "WEBP", lossless=True),
    encoded(quadrants(48, 40), "GIF", save_all=True, append_images=[Image.new("RGB", (48, 40))]),
    encoded(quadrants(48, 40), "BMP"),
    encoded(quadrants(48, 40), "TIFF"),
    encoded(quadrants(48, 40), "TIFF", compression="tiff_lzw"),
]
CONFIG = ImageConfig(side=32, min_side=8, max_pixels=1_000_000)


def image_or_reason(data: bytes) -> None:
    try:
        image = normalise_image(data, CONFIG)
    except Rejected as rejected:
        assert rejected.reason in IMAGE_REASONS
        return
    assert isinstance(image, NormalisedImage)
    again = normalise_image(image.data, CONFIG)
    assert (again.width, again.height) == (image.width, image.height)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0.05, 1.0),
)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files(file: bytes, changes: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(file)
    for place, value in changes:
        data[int(place**2 * (len(data) - 1))] = value  # headers are hit more often
    image_or_reason(bytes(data[: int(len(data) * kept)]) if kept < 0.9 else bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.sampled_from(FILES), st.binary(max_size=200), st.integers(2, 64))
@settings(max_examples=100, deadline=None)
def test_rubbish_behind_a_good_beginning(file: bytes, rubbish: bytes, length: int) -> None:
    image_or_reason(file[:length] + rubbish)


@given(st.binary(max_size=120))
def test_any_exif_has_an_orientation(data: bytes) -> None:
    for start in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        assert 1 <= exif_orientation(start + data) <= 8
