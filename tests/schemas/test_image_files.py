"""The size of a simple WebP from its first octets, against Pillow; every other file is left to the general reader."""

import io
from typing import Any

import pytest
from PIL import Image

from schemas.image_files import lossy_webp_size


def webp(width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (width, height), (9, 99, 200, 128)[: len(mode)]).save(data, "WEBP", **options)
    return data.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1070, 450), (17, 33), (16_383, 1)])
def test_the_size_of_a_lossy_file(size: tuple[int, int]) -> None:
    assert lossy_webp_size(webp(*size)) == size


def test_other_files_have_none() -> None:
    plain = webp(64, 32)
    animated = io.BytesIO()
    frames = [Image.new("RGB", (64, 32), (n, 0, 0)) for n in (1, 200)]
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    others = {
        "lossless": webp(64, 32, lossless=True),
        "transparent": webp(64, 32, "RGBA"),
        "animated": animated.getvalue(),
        "with metadata": webp(64, 32, exif=exif),
        "cut": plain[:-1],
        "with more behind it": plain + b"\0\0",
        "no key frame": plain[:20] + bytes([plain[20] | 1]) + plain[21:],
        "header alone": plain[:24],
        "empty": b"",
    }
    assert {name: lossy_webp_size(data) for name, data in others.items()} == dict.fromkeys(others)
    assert lossy_webp_size(plain) == (64, 32)
