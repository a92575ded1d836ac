"""Damage is what loses pixels: files that only deviate are kept, the same ones by build, training and server."""

import io
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from emu.models.visual import pixels_of
from pipelines.core.pipeline import Rejected
from pipelines.images.normalise import ImageConfig, normalise_image
from schemas.images import ImageError, decode_image
from tests.download.drawn import encoded

KEEP = ImageConfig(side=4096, min_side=8)
LARGE_TEXT = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))


@pytest.fixture(scope="module")
def cases(repository: Path) -> Path:
    return repository / "tests" / "bug_cases"


@pytest.fixture(scope="module")
def control(cases: Path) -> bytes:
    return (cases / "control.jpg").read_bytes()


def pillow_pixels(data: bytes) -> np.ndarray | None:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    except (OSError, SyntaxError, ValueError):
        return None


def outcome(data: bytes) -> tuple[str | None, np.ndarray | None]:
    """The reason to refuse, or the pixels; the same by build, training and server."""
    try:
        pixels = np.asarray(decode_image(data)).astype(int)
    except ImageError as error:
        with pytest.raises(Rejected) as caught:
            normalise_image(data, KEEP)
        assert caught.value.reason == error.reason
        with pytest.raises(ImageError):
            pixels_of([data], 16)
        return error.reason, None
    assert_clean(normalise_image(data, KEEP).data, pixels)
    return None, pixels


def assert_clean(published: bytes, pixels: np.ndarray) -> None:
    """Others read what is published, without a warning, as the same image."""
    found = pillow_pixels(published)
    opened = cv2.imdecode(np.frombuffer(published, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None and opened is not None
    assert np.abs(found - pixels).mean() < 4  # some are encoded again
    assert np.abs(opened[:, :, ::-1].astype(int) - pixels).mean() < 4
    if published.startswith(b"\xff\xd8"):
        simplejpeg.decode_jpeg(published, strict=True)


def segment(marker: int, contents: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(contents) + 2) + contents


def scan_of(data: bytes) -> int:
    return data.index(b"\xff\xda")


def noise(num_bytes: int) -> bytes:
    return bytes(random.Random(num_bytes).choices(range(1, 255), k=num_bytes))


DEVIATIONS: dict[str, Callable[[bytes], bytes]] = {
    "no end marker": lambda d: d[:-2],
    "half an end marker": lambda d: d[:-1],
    "zeros instead of an end marker": lambda d: d[:-2] + bytes(40),
    "bytes after the end": lambda d: d + noise(500),
    "zeros before the end": lambda d: d[:-2] + bytes(100) + d[-2:],
    "one byte before the end": lambda d: d[:-2] + b"\x80" + d[-2:],
    "text before the end": lambda d: d[:-2] + b"made by hand, with love" + d[-2:],
    "noise before the end": lambda d: d[:-2] + noise(37) + d[-2:],
    "bytes before a table": lambda d: d[:20] + noise(5) + d[20:],
    "bytes before the scan": lambda d: d[: scan_of(d)] + bytes(3) + d[scan_of(d) :],
    "fill bytes": lambda d: d[:20] + b"\xff" * 5 + d[20:],
    "unknown JFIF version": lambda d: d.replace(b"JFIF\0\1", b"JFIF\0\7", 1),
    "unknown Adobe transform": lambda d: d[:2] + segment(0xEE, b"Adobe\0d\0\0\0\0\7") + d[20:],
    "half a colour profile": lambda d: d[:2] + segment(0xE2, b"ICC_PROFILE\0\2\3half") + d[2:],
    "several at once": lambda d: d[:20] + b"abc" + d[20:-2] + bytes(9),
}


def kinds(control: bytes) -> Iterator[bytes]:
    """Sequential, with restarts, with optimized tables, grey, and progressive."""
    yield control
    image = Image.open(io.BytesIO(control)).resize((120, 90))
    yield encoded(image, "JPEG", quality=90, restart_marker_blocks=7)
    yield encoded(image, "JPEG", quality=60, optimize=True, subsampling=0)
    yield encoded(image.convert("L"), "JPEG", quality=85)
    yield encoded(image, "JPEG", quality=90, progressive=True)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_jpegs_that_only_deviate_are_kept(name: str, control: bytes) -> None:
    for data in kinds(control):
        reason, pixels = outcome(DEVIATIONS[name](data))
        assert reason is None
        assert (pixels == pillow_pixels(data)).all()


def test_bytes_before_any_marker_are_forgiven(control: bytes) -> None:
    *_, progressive = kinds(control)
    (_, restarts, *_) = kinds(control)
    for data in (restarts, progressive):
        found = re.finditer(rb"\xff[\xd0-\xd7\xc4\xda]", data[scan_of(data) + 2 :])
        places = [match.start() + scan_of(data) + 2 for match in found]
        assert len(places) > 5
        for place in places[:: len(places) // 5]:
            reason, pixels = outcome(data[:place] + noise(11) + data[place:])
            assert reason is None and (pixels == pillow_pixels(data)).all()


def test_the_scan_header_of_some_phones(cases: Path, control: bytes) -> None:
    data = (cases / "samsung_sos.jpg").read_bytes()
    reason, pixels = outcome(data)
    assert reason is None and (pixels == pillow_pixels(control)).all()
    assert normalise_image(data, ImageConfig()).data == control


def test_cut_jpegs_are_refused_wherever_they_are_cut(control: bytes) -> None:
    for data in kinds(control):
        start = scan_of(data) + 20
        for end in [*range(start, len(data) - 20, (len(data) - start) // 25), len(data) - 6]:
            assert outcome(data[:end])[0] == "image_truncated"


def test_a_progressive_jpeg_cut_between_two_scans_is_refused(control: bytes) -> None:
    *_, data = kinds(control)
    starts = [m.start() for m in re.finditer(rb"\xff\xda", data)]
    assert len(starts) > 5
    for start in starts[1:]:
        for cut in (data[:start], data[:start] + b"\xff"):
            assert outcome(cut)[0] == "image_truncated"


@pytest.mark.parametrize("damage", ["overwritten", "zeros", "deleted"])
def test_damaged_scans_are_refused_where_the_decoder_notices(damage: str, control: bytes) -> None:
    """No image is kept of which libjpeg lost its place; a bit error that gives a valid code it cannot see."""
    random_ = random.Random(damage)
    num_noticed = 0
    for data in list(kinds(control))[:4]:
        for _ in range(15):
            place = random_.randrange(scan_of(data) + 14, len(data) - 300)
            length = random_.choice([1, 40, 256])
            filler = {"overwritten": noise(length), "zeros": bytes(length), "deleted": b""}
            changed = data[:place] + filler[damage] + data[place + length :]
            reason, _ = outcome(changed)
            try:
                simplejpeg.decode_jpeg(changed, strict=True)
            except ValueError:
                num_noticed += 1
                assert reason == "image_corrupt", (place, length)
    assert num_noticed > 20


def with_chunk(data: bytes, name: bytes, contents: bytes, crc_error: int = 0) -> bytes:
    """The PNG with another chunk behind its header."""
    crc = zlib.crc32(name + contents) ^ crc_error
    chunk = struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", crc)
    return data[:33] + chunk + data[33:]


def pngs(control: bytes) -> Iterator[bytes]:
    image = Image.open(io.BytesIO(control))
    image = image.resize((61, 43))
    for picture in (image, image.convert("L"), image.quantize(32)):
        yield encoded(picture, "PNG")
    yield cv2.imencode(".png", np.asarray(image))[1].tobytes()


@pytest.mark.parametrize("name", ["xmp_itxt.png", "ancillary_bad_crc.png"])
def test_recorded_pngs_with_odd_metadata_are_kept(cases: Path, name: str) -> None:
    data = (cases / name).read_bytes()
    reason, pixels = outcome(data)
    with_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert reason is None and with_opencv is not None
    assert (pixels == with_opencv[:, :, ::-1]).all()


def test_metadata_of_pngs_do_not_matter_and_are_not_published(control: bytes) -> None:
    for data in pngs(control):
        for changed in (
            with_chunk(data, b"iTXt", LARGE_TEXT),
            with_chunk(data, b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20))),
            with_chunk(data, b"iCCP", b"p\0\0no zlib"),
            with_chunk(data, b"tEXt", b"a\0b", crc_error=1),
            with_chunk(data, b"eXIf", b"II*\0", crc_error=1),
            with_chunk(data, b"gAMA", b"\0\0\0\1", crc_error=1),
            data + b"behind the end",
        ):
            reason, pixels = outcome(changed)
            assert reason is None and (pixels == pillow_pixels(data)).all()
    rgb = next(pngs(control))
    assert normalise_image(with_chunk(rgb, b"iTXt", LARGE_TEXT), KEEP).data == rgb
    profile = with_chunk(rgb, b"iCCP", b"p\0\0" + zlib.compress(b"small"))
    assert normalise_image(profile, KEEP).data == profile


def test_a_wrong_crc_of_pixels_that_are_right_is_corrected(control: bytes) -> None:
    for data in pngs(control):
        place = data.index(b"IDAT")
        (length,) = struct.unpack_from(">I", data, place - 4)
        crc = place + 4 + length
        reason, pixels = outcome(data[:crc] + b"\1\2\3\4" + data[crc + 4 :])
        assert reason is None and (pixels == pillow_pixels(data)).all()


def test_any_flipped_bit_in_the_pixels_of_a_png_is_noticed(control: bytes) -> None:
    random_ = random.Random(1)
    for data in pngs(control):
        for _ in range(25):
            changed = bytearray(data)
            changed[random_.randrange(data.index(b"IDAT") + 4, len(data) - 20)] ^= (
                1 << random_.randrange(8)
            )
            assert outcome(bytes(changed))[0] == "image_corrupt"


def test_pngs_without_their_tail_are_kept_as_long_as_all_pixels_are_there(control: bytes) -> None:
    for data in pngs(control):
        for num_missing in range(1, 40):
            reason, pixels = outcome(data[:-num_missing])
            expected = pillow_pixels(data[:-num_missing])
            assert (reason is None) == (expected is not None), num_missing
            assert reason in (None, "image_truncated")
            assert pixels is None or (pixels == expected).all()


def test_a_bomb_with_a_wrong_crc_is_not_inflated_to_its_end() -> None:
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 26), 1)
    data = b"\x89PNG\r\n\x1a\n"
    for name, contents in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        crc = zlib.crc32(name + contents) ^ (name == b"IDAT")
        data += struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", crc)
    assert outcome(data)[0] == "image_corrupt"


def test_webps_cut_behind_their_pixels_are_kept(control: bytes) -> None:
    image = Image.open(io.BytesIO(control))
    for options in ({"quality": 80}, {"lossless": True}):
        data = encoded(image, "WEBP", exif=b"Exif\0\0" + bytes(101), **options)
        end = data.index(b"EXIF")
        for length in (len(data) - 1, len(data) - 60, end + 3, end):
            reason, pixels = outcome(data[:length])
            assert reason is None and (pixels == pillow_pixels(data)).all()
        for length in (end - 3, end // 2, 40, 20):
            assert outcome(data[:length])[0] == "image_truncated"


def tiff(order: str, values: np.ndarray, bits: int, photometric: int, sample_format: int) -> bytes:
    """An uncompressed TIFF of one strip, from packed rows."""
    height, width = values.shape
    body = pack(values, bits, order)
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(body)),
        (339, 3, sample_format),
    ]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        form = "HHII" if kind == 4 else "HHIHxx"
        directory += struct.pack(f"{order}{form}", tag, kind, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8 + len(body)) + body + directory + bytes(4)


def pack(values: np.ndarray, bits: int, order: str) -> bytes:
    if bits == 12:
        digits = "".join(f"{value:03x}" for value in values.ravel())
        return bytes.fromhex(digits)
    kinds = {8: "u1", 16: "u2", 32: "u4"} if values.dtype.kind == "u" else {}
    kind = kinds.get(bits, f"{values.dtype.kind}{bits // 8}")
    return values.astype(order + kind).tobytes()


SAMPLES = [(1, 8), (1, 12), (1, 16), (1, 32), (2, 8), (2, 16), (2, 32), (3, 32)]
"""Format (1 unsigned, 2 signed, 3 float) and bits."""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(("sample_format", "bits"), SAMPLES)
def test_grey_tiffs_have_the_right_brightness_or_are_refused_by_name(
    order: str, photometric: int, sample_format: int, bits: int
) -> None:
    kind = {1: "u4", 2: "i4", 3: "f4"}[sample_format]
    largest = 1 if sample_format == 3 else (1 << bits - (sample_format == 2)) - 1
    ramp = np.linspace(0, largest, 64 * 64).reshape(64, 64).astype(kind)
    reason, pixels = outcome(tiff(order, ramp, bits, photometric, sample_format))
    if reason is None:
        assert pixels is not None and sample_format == 1
        wanted = np.linspace(0, 255, 64 * 64).reshape(64, 64, 1)
        assert np.abs(pixels - (255 - wanted if photometric == 0 else wanted)).max() <= 1
    else:
        assert reason == "image_format_unsupported"
    if sample_format == 1 and (order, bits) in (("<", 8), ("<", 16), (">", 8)):
        assert reason is None


def test_recorded_tiffs_have_the_right_brightness(cases: Path) -> None:
    photo = decode_image((cases / "xmp_itxt.png").read_bytes()).convert("L")
    for name in ("grey12.tif", "grey16_whiteiszero.tif"):
        reason, pixels = outcome((cases / name).read_bytes())
        assert reason is None and pixels is not None
        assert np.abs(pixels - np.asarray(photo).astype(int)[:, :, np.newaxis]).max() <= 1


def test_signed_and_float_tiffs_name_their_fault() -> None:
    for kind, bits, sample_format in (("i4", 8, 2), ("i4", 16, 2), ("f4", 32, 3)):
        data = tiff("<", np.zeros((64, 64), kind), bits, 1, sample_format)
        with pytest.raises(ImageError, match=r"signed or float samples.*convert it to 8-bit RGB"):
            decode_image(data)
