import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.core.pipeline import Rejected
from pipelines.images.normalise import ImageConfig, normalise_image
from tests.download.drawn import assert_upright, encoded, pixels_of, png16, quadrants, turned
from tests.servers.misbehaviour import HTML, png_bomb

SMALL = ImageConfig(side=64)


def reason_of(data: bytes, config: ImageConfig = SMALL) -> str:
    with pytest.raises(Rejected) as caught:
        normalise_image(data, config)
    return caught.value.reason


@pytest.mark.parametrize(
    ("form", "options", "name"),
    [
        ("JPEG", {"quality": 90}, "jpg"),
        ("JPEG", {"quality": 90, "progressive": True}, "jpg"),
        ("JPEG", {"quality": 90, "keep_rgb": True}, "jpg"),
        ("PNG", {}, "png"),
        ("WEBP", {"lossless": True}, "webp"),
        ("WEBP", {"quality": 80}, "webp"),
    ],
)
def test_plain_images_within_the_size_keep_their_bytes(form, options, name) -> None:
    data = encoded(quadrants(), form, **options)
    image = normalise_image(data, ImageConfig(side=96))
    assert image.data == data
    assert (image.format, image.width, image.height) == (name, 128, 96)
    assert (image.source_width, image.source_height) == (128, 96)


@pytest.mark.parametrize(
    ("size", "result"),
    [
        ((128, 96), (85, 64)),
        ((96, 128), (64, 85)),
        ((1000, 1000), (64, 64)),
        ((2000, 300), (427, 64)),
        ((65, 65), (64, 64)),
        ((64, 500), (64, 500)),
        ((40, 50), (40, 50)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_shorter_side_is_brought_down_and_never_up(form, size, result) -> None:
    image = normalise_image(encoded(quadrants(*size), form), SMALL)
    assert (image.width, image.height) == result
    assert pixels_of(image.data).shape == (result[1], result[0], 3)
    assert (image.source_width, image.source_height) == size
    assert_upright(image.data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("side", [64, 128])
def test_every_orientation_is_applied(orientation: int, form: str, side: int) -> None:
    data = turned(orientation, form)
    image = normalise_image(data, ImageConfig(side=side))
    assert_upright(image.data)
    assert image.width > image.height
    assert (image.source_width, image.source_height) == (128, 96)
    assert "exif" not in Image.open(io.BytesIO(image.data)).info or orientation == 1


def _alpha(mode: str) -> Image.Image:
    image = quadrants().convert("RGBA")
    image.putalpha(128)
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(
    ("form", "image", "options"),
    [
        ("PNG", _alpha("RGBA"), {}),
        ("WEBP", _alpha("RGBA"), {"lossless": True}),
        ("TIFF", _alpha("RGBA"), {}),
    ],
)
def test_transparency_comes_upon_white(form, image, options) -> None:
    result = normalise_image(encoded(image, form, **options), ImageConfig(side=96))
    assert result.format == "jpg"
    top_left = pixels_of(result.data)[24, 32]
    assert np.abs(top_left - (255, 127, 127)).max() <= 8


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_colours_become_white(form: str) -> None:
    image = quadrants().quantize(4)
    red = image.getpixel((10, 10))
    result = normalise_image(encoded(image, form, transparency=red), SMALL)
    pixels = pixels_of(result.data)
    assert pixels[16, 20].min() >= 245
    assert np.abs(pixels[16, 64] - (0, 160, 0)).max() <= 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode: str) -> None:
    form = "PNG" if mode in ("1", "L", "P") else "TIFF"
    image = quadrants().convert("P" if mode == "P" else "RGB")
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    data = encoded(image.convert(mode) if image.mode != mode else image, form)
    result = normalise_image(data, SMALL)
    assert Image.open(io.BytesIO(result.data)).mode == "RGB"
    if mode in ("P", "CMYK", "YCbCr"):
        assert_upright(result.data, tolerance=20)


@pytest.mark.parametrize("side", [64, 256])
def test_cmyk_jpegs_of_adobe_are_not_inverted(side: int) -> None:
    data = encoded(quadrants(512, 384).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert_upright(normalise_image(data, ImageConfig(side=side)).data, tolerance=20)


def test_grey_jpegs_become_rgb() -> None:
    result = normalise_image(encoded(quadrants().convert("L"), "JPEG"), ImageConfig(side=128))
    assert Image.open(io.BytesIO(result.data)).mode == "RGB"
    assert result.format == "jpg"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_scaled_to_8(channels: int) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[np.newaxis], 64, axis=0)
    values = np.stack([ramp] * channels, axis=2) if channels > 1 else ramp
    if channels in (2, 4):
        values[:, :, -1] = 65535
    pixels = pixels_of(normalise_image(png16(values), ImageConfig(side=64)).data)
    expected = np.linspace(0, 255, 64)[np.newaxis, :, np.newaxis]
    assert np.abs(pixels - expected).max() <= 4


def test_16_bit_tiffs_are_scaled_to_8() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[np.newaxis], 64, axis=0)
    data = encoded(Image.fromarray(ramp), "TIFF")
    pixels = pixels_of(normalise_image(data, ImageConfig(side=64)).data)
    assert np.abs(pixels - np.linspace(0, 255, 64)[np.newaxis, :, np.newaxis]).max() <= 4


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    black = Image.new("RGB", (128, 96))
    data = encoded(quadrants(), form, save_all=True, append_images=[black, black], duration=50)
    result = normalise_image(data, ImageConfig(side=96))
    assert result.format == "jpg"
    assert_upright(result.data, tolerance=30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("side", [32, 96])
def test_truncated_images_are_told(form: str, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for length in (len(data) // 2, 40, 12):
        found = reason_of(data[:length], ImageConfig(side=side))
        assert found in ("image_truncated", "image_corrupt", "not_an_image"), length
    assert reason_of(data[: len(data) // 2]) in ("image_truncated", "image_corrupt")


def test_damaged_data_are_told_though_the_bytes_would_be_kept() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    for form in ("JPEG", "PNG"):
        data = bytearray(encoded(Image.fromarray(noise), form))
        middle = len(data) // 2
        data[middle : middle + 40] = b"\xff\xd9" * 20 if form == "JPEG" else bytes(40)
        assert reason_of(bytes(data), ImageConfig(side=96)) in ("image_corrupt", "image_truncated")


def test_stray_bytes_before_the_end_are_forgiven() -> None:
    data = encoded(quadrants(), "JPEG")
    stray = data[:-2] + b"\0\0\0" + data[-2:]
    assert normalise_image(stray, ImageConfig(side=96)).data == stray
    assert_upright(normalise_image(stray, SMALL).data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HTML, "html_not_image"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><rss/>", "html_not_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_format_unsupported"),
        (b"\0\0\0\x1cftypavif" + bytes(99), "image_format_unsupported"),
        (b"\0\0\0\x1cftypheic" + bytes(99), "image_format_unsupported"),
        (b"8BPS" + bytes(99), "image_format_unsupported"),
        (b"%PDF-1.4", "not_an_image"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not_an_image"),
        (b"", "not_an_image"),
        (b"\xff\xd8\xff\xd9", "image_truncated"),
        (b"\x89PNG\r\n\x1a\n", "image_truncated"),
        (b"BM", "image_truncated"),
        (b"GIF89a", "image_truncated"),
        (encoded(quadrants(16, 16), "PNG"), "image_too_small"),
        (encoded(quadrants(1000, 50), "PNG"), "image_too_elongated"),
        (encoded(quadrants().convert("F"), "TIFF"), "image_format_unsupported"),
    ],
)
def test_what_is_no_image_is_told(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.filterwarnings("error")
def test_bombs_are_known_by_their_header() -> None:
    bomb = png_bomb(20_000)
    assert len(bomb) < 100_000
    assert reason_of(bomb) == "image_too_many_pixels"
    wide = encoded(quadrants(100, 100), "GIF")
    assert reason_of(wide[:6] + b"\xff\xff\xff\xff" + wide[10:]) == "image_too_many_pixels"
    tiff = encoded(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4")
    assert reason_of(tiff) == "image_too_many_pixels"


def test_a_jpeg_of_countless_scans_is_not_decoded() -> None:
    data = encoded(quadrants(), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff", start + 2)
    scan = data[start:end]
    assert reason_of(data[:start] + scan * 100 + data[start:]) == "image_too_many_scans"


def test_the_limits_are_those_of_the_config() -> None:
    data = encoded(quadrants(), "PNG")
    assert reason_of(data, ImageConfig(max_pixels=128 * 96 - 1)) == "image_too_many_pixels"
    assert reason_of(data, ImageConfig(min_side=97)) == "image_too_small"
    assert reason_of(data, ImageConfig(max_aspect=1.3)) == "image_too_elongated"
    fits = ImageConfig(max_pixels=128 * 96, min_side=96, max_aspect=4 / 3)
    assert normalise_image(data, fits).data == data


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"side": 0}, "side is 0"),
        ({"quality": 101}, "quality is 101"),
        ({"max_pixels": 10**9}, "Pillow"),
    ],
)
def test_bad_limits_are_told(change: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ImageConfig(**change)


def test_the_same_bytes_give_the_same_bytes() -> None:
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(quadrants(300, 200), form)
        assert len({normalise_image(data, SMALL).data for _ in range(3)}) == 1


def test_scaled_decoding_is_close_to_decoding_in_full() -> None:
    waves = np.fromfunction(
        lambda y, x: 127 + 60 * np.sin(x / 31) + 60 * np.cos(y / 23), (800, 1200)
    )
    data = encoded(Image.fromarray(waves.astype(np.uint8)).convert("RGB"), "JPEG", quality=92)
    scaled = pixels_of(normalise_image(data, SMALL).data)
    full = Image.open(io.BytesIO(data)).resize((96, 64), Image.Resampling.BOX)
    assert np.abs(scaled - np.asarray(full).astype(int)).mean() < 1.5


def test_real_photos_with_orientation(sample_data: Path) -> None:
    sizes = {}
    for number in (1, 3, 6, 8):
        data = (sample_data / "exif" / f"landscape_{number}.jpg").read_bytes()
        image = normalise_image(data, SMALL)
        sizes[number] = (image.width, image.height)
        pixels = pixels_of(image.data)
        assert pixels[:8].mean() > pixels[-8:].mean(), "the sky is above"
    assert set(sizes.values()) == {sizes[1]}
    assert sizes[1][0] > sizes[1][1]


def test_all_real_photos_are_taken(sample_data: Path) -> None:
    paths = sorted((sample_data / "flickr8k" / "images").glob("*.jpg"))[:100]
    images = [normalise_image(path.read_bytes(), ImageConfig(side=100)) for path in paths]
    for image in images:
        source_side = min(image.source_width, image.source_height)
        assert min(image.width, image.height) == min(100, source_side)
