"""The one opener of images: which pixels it gives, and what its errors say."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.images.normalise import decode
from schemas.images import ImageError, decode_image, open_image, to_rgb
from tests.download.drawn import assert_upright, encoded, png16, quadrants, turned
from tests.servers.misbehaviour import HTML, png_bomb


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data)).astype(int)


def as_png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_upright_in_rgb_without_metadata(orientation: int, form: str) -> None:
    image = decode_image(turned(orientation, form))
    assert (image.mode, image.size, image.info) == ("RGB", (128, 96), {})
    assert_upright(as_png(image))
    pillow = Image.open(io.BytesIO(turned(orientation, form)))
    assert to_rgb(pillow).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {"quality": 90}), ("JPEG", {"progressive": True}), ("JPEG", {"keep_rgb": True})],
)
def test_the_fast_decoder_of_the_build_gives_the_same_pixels(
    form: str, options: dict[str, Any], sample_data: Path
) -> None:
    photo = next((sample_data / "flickr8k" / "images").glob("*.jpg")).read_bytes()
    for data in (photo, encoded(quadrants(), form, **options)):
        image = open_image(data)
        assert image.jpeg_header is not None and image.jpeg_header.colorspace == "RGB"
        fast, clean = decode(image, image.width, image.height)
        pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert clean == data
        assert (fast == pixels_of(data)).all()
        assert np.abs(fast - pillow).max() <= 2


def test_sixteen_bits_are_rounded_to_eight() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    wanted = (values.astype(int) + 128) // 257
    for data in (png16(values), encoded(Image.fromarray(values), "TIFF")):
        found = pixels_of(data)
        assert (found == wanted[:, :, np.newaxis]).all()


def test_transparency_is_composited_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 102))
    found = pixels_of(as_png(image))
    assert [tuple(found[0, x]) for x in range(3)] == [
        (255, 255, 255),
        (255, 0, 0),
        (153, 153, 153),
    ]


def test_only_exif_turns_an_image() -> None:
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    assert decode_image(encoded(quadrants(), "JPEG", xmp=xmp)).size == (128, 96)
    assert decode_image(encoded(quadrants(), "JPEG", exif=b"Exif\0\0garbage")).size == (128, 96)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "not_an_image", ["0 bytes", "JPEG, PNG"]),
        (b"%PDF-1.4", "not_an_image", ["8 bytes", "%PDF", "JPEG, PNG"]),
        (HTML, "html_not_image", ["HTML", "JPEG, PNG"]),
        (b"\0\0\0\x1cftypavif" + bytes(9), "image_format_unsupported", ["AVIF", "JPEG, PNG"]),
        (png_bomb(20_000), "image_too_many_pixels", ["400,000,000", "67,108,864", "smaller"]),
        (as_png(quadrants())[:-60], "image_truncated", ["PNG", "damaged", "save it again"]),
        (
            encoded(quadrants().convert("F"), "TIFF"),
            "image_format_unsupported",
            ["mode F", "8-bit"],
        ),
    ],
)
def test_errors_name_the_value_the_limit_and_a_hint(
    data: bytes, reason: str, words: list[str]
) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words), caught.value
    placed = pickle.loads(pickle.dumps(caught.value.at("sample 'a'")))
    assert (placed.reason, str(placed)) == (reason, f"sample 'a': {caught.value}")


def test_many_scans_are_refused_before_decoding() -> None:
    data = encoded(quadrants(), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 2)]
    with pytest.raises(ImageError, match="more than 64 scans"):
        open_image(data[:start] + scan * 100 + data[start:])


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    data = as_png(quadrants())
    assert open_image(data, 128 * 96).width == 128
    with pytest.raises(ImageError, match="128 x 96 = 12,288 pixels, the limit is 12,287"):
        open_image(data, 128 * 96 - 1)
