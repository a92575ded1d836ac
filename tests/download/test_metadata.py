"""Published files hold pixels and their colour profile, and no more bytes than these can need."""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pipelines.images.metadata import without_metadata
from pipelines.images.normalise import ImageConfig, max_kept_bytes, normalise_image

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRET = b"gps: here"


def photo(side: int = 96) -> Image.Image:
    gradient = np.linspace(0, 255, side * side * 3).reshape(side, side, 3).astype(np.uint8)
    return Image.fromarray(gradient)


def saved(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    photo().save(file, format, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x010E] = SECRET.decode()
    return made


def png_text() -> PngImagePlugin.PngInfo:
    made = PngImagePlugin.PngInfo()
    made.add_text("comment", SECRET.decode())
    return made


def comment_segments(num_bytes: int) -> bytes:
    """Comment segments of a JPEG with at least so many bytes."""
    segment = b"\xff\xfe" + struct.pack(">H", 0xFFFF) + random.Random(0).randbytes(0xFFFD)
    return segment * -(-num_bytes // len(segment))


FILES = {
    "jpeg": saved("JPEG", comment=SECRET, exif=exif(), xmp=SECRET, icc_profile=PROFILE),
    "jpeg progressive": saved("JPEG", progressive=True, comment=SECRET, icc_profile=PROFILE),
    "jpeg with more behind its end": saved("JPEG", icc_profile=PROFILE) + SECRET,
    "png": saved("PNG", pnginfo=png_text(), exif=exif(), icc_profile=PROFILE),
    "webp": saved("WEBP", exif=exif(), xmp=SECRET, icc_profile=PROFILE),
    "webp lossless": saved("WEBP", lossless=True, exif=exif(), icc_profile=PROFILE),
}


@pytest.mark.parametrize("name", FILES)
def test_metadata_is_left_out_and_pixels_and_profile_stay(name: str) -> None:
    data = FILES[name]
    found = without_metadata(data, name.partition(" ")[0])
    assert found is not None
    assert SECRET in data and SECRET not in found
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(found))
    assert np.array_equal(np.asarray(before), np.asarray(after))
    assert after.info["icc_profile"] == PROFILE
    assert not after.getexif()
    assert without_metadata(found, name.partition(" ")[0]) is found


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_file_without_metadata_stays_as_it_is(format: str) -> None:
    data = saved(format)
    assert without_metadata(data, format.lower()) is data


@pytest.mark.parametrize("name", FILES)
def test_damage_never_raises(name: str) -> None:
    chance, format = random.Random(1), name.partition(" ")[0]
    for _ in range(300):
        data = bytearray(FILES[name])
        data[chance.randrange(12, len(data))] = chance.randrange(256)
        cut = bytes(data[: chance.randrange(13, len(data))])
        assert len(without_metadata(cut, format) or b"") <= len(cut) + 2


def test_megabytes_of_comments_are_not_published() -> None:
    plain = saved("JPEG", quality=90)
    large = plain[:2] + comment_segments(15 << 20) + plain[2:]
    assert normalise_image(large, ImageConfig()).data == plain
    scans = saved("JPEG", progressive=True)
    scan = scans.rindex(b"\xff\xda")
    between = scans[:scan] + comment_segments(1 << 20) + scans[scan:]
    assert normalise_image(between, ImageConfig()).data == scans


def test_a_file_of_more_bytes_than_its_pixels_need_is_encoded_again() -> None:
    profile = PROFILE + random.Random(2).randbytes(300_000)
    for format in ("PNG", "WEBP"):
        large = saved(format, icc_profile=profile)
        assert len(large) > max_kept_bytes(96, 96)
        image = normalise_image(large, ImageConfig())
        assert (image.format, image.width) == ("jpg", 96)
        assert len(image.data) < 20_000
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG")
    assert normalise_image(file.getvalue(), ImageConfig()).data == file.getvalue()
