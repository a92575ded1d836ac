"""What an encoded image says of itself before a single pixel is decoded.

Format by its first bytes, never by a claimed type; width and height, so that a decompression bomb is known
before it goes off; the EXIF orientation; and whether it is plain 8-bit RGB that needs no conversion.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import simplejpeg

from pipelines.core.pipeline import Reason, Rejected

IMAGE_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "html_not_image": Reason("A page of HTML or XML instead of an image."),
        "not_an_image": Reason("The bytes begin like no image format."),
        "image_format_unsupported": Reason("An image format, colour mode or depth not decoded."),
        "image_too_many_pixels": Reason("More pixels than `max_pixels`; told by the header."),
        "image_too_many_scans": Reason("A progressive JPEG built to exhaust its decoder."),
        "image_too_small": Reason("The shorter side is below `min_side`."),
        "image_too_elongated": Reason("Longer side over shorter side exceeds `max_aspect`."),
        "image_truncated": Reason("The image data end too early.", retryable=True),
        "image_corrupt": Reason("The image data are damaged."),
    }
)
"""Why a fetched body is not an image that is kept."""

MAX_SCANS = 64
"""Scans of a JPEG. Progressive ones have about ten; each may cost the time of a whole decode."""

_MAX_PARTS = 4096  # chunks or segments walked through; files of cameras have dozens
_SCAN, _END = 0xDA, 0xD9
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})
_TAG_ORIENTATION, _SHORT = 0x0112, 3


class ImageRejected(Rejected):
    """The bytes are no image that can be used."""


@dataclass(frozen=True)
class ImageHeader:
    """Told by the header alone."""

    format: str
    """jpeg, png, webp, gif, bmp or tiff."""
    width: int
    """Pixels, as stored (before the orientation is applied). 0 for tiff: its own decoder tells."""
    height: int
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    is_plain: bool = False
    """True for a still image of 8-bit RGB without transparency, in a format that is published."""
    colorspace: str = ""
    """Of a JPEG, in the words of simplejpeg; empty where it cannot tell."""


def read_header(data: bytes) -> ImageHeader:
    """The header of an encoded image.

    Raises:
        ImageRejected: not_an_image, html_not_image, image_format_unsupported, image_truncated,
            image_corrupt or image_too_many_scans.
    """
    for signature, read in _READERS.items():
        if data.startswith(signature):
            try:
                return read(data)
            except (struct.error, IndexError):
                raise ImageRejected("image_truncated", "in the header") from None
    raise _unknown(data)


def exif_orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, of EXIF data that begin with a TIFF header; 1 where there is none."""
    try:
        order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
        if not order:
            return 1
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(min(num_entries, 512)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == _TAG_ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _jpeg(data: bytes) -> ImageHeader:
    orientation, frame, is_progressive, num_in_scan = 1, b"", False, 0
    for marker, segment in _jpeg_segments(data):
        if marker == 0xE1 and segment.startswith(b"Exif\0\0") and orientation == 1:
            orientation = exif_orientation(segment[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, is_progressive = segment, marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == _SCAN:
            num_in_scan = segment[0]
    precision, height, width, num_components = struct.unpack_from(">BHHB", frame)
    has_scans = is_progressive or num_in_scan < num_components
    if has_scans and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageRejected("image_too_many_scans", f"limit {MAX_SCANS}")
    colorspace = _turbo_colorspace(data, width, height)
    is_plain = precision == 8 and num_components == 3 and bool(colorspace) and orientation == 1
    return ImageHeader("jpeg", width, height, orientation, is_plain, colorspace)


def _turbo_colorspace(data: bytes, width: int, height: int) -> str:
    """The colour space as libjpeg-turbo sees it; empty if it cannot read this file."""
    try:
        turbo_height, turbo_width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return ""
    if (turbo_width, turbo_height) != (width, height):
        raise ImageRejected("image_corrupt", "two different sizes in the header")
    return colorspace


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with their segments, up to the first scan and with its header."""
    place = 2
    for _ in range(_MAX_PARTS):
        place = data.find(b"\xff", place)  # like libjpeg, skip what lies between segments
        while place >= 0 and data[place] == 0xFF:
            place += 1
        if place < 0:
            break
        marker = data[place]
        place += 1
        if marker == 0 or marker in _BARE_MARKERS:
            continue
        if marker == _END:
            return
        (length,) = struct.unpack_from(">H", data, place)
        if place + length > len(data):
            break
        yield marker, data[place + 2 : place + length]
        if marker == _SCAN:
            return
        place += max(length, 2)
    raise ImageRejected("image_truncated", "in the header")


def _png(data: bytes) -> ImageHeader:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    orientation, is_plain = 1, depth == 8 and colour == 2
    for name, start, length in _png_chunks(data):
        if name == b"eXIf":
            orientation = exif_orientation(data[start : start + length])
        elif name in (b"tRNS", b"acTL"):
            is_plain = False
    return ImageHeader("png", width, height, orientation, is_plain and orientation == 1)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    place = 8
    for _ in range(_MAX_PARTS):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"IEND":
            return
        yield name, place + 8, length
        place += 12 + length
    raise ImageRejected("image_corrupt", f"more than {_MAX_PARTS} chunks")


def _webp(data: bytes) -> ImageHeader:
    if data[8:12] != b"WEBP":
        raise _unknown(data)
    (size,) = struct.unpack_from("<I", data, 4)
    if len(data) < size + 8:
        raise ImageRejected("image_truncated", "shorter than its header says")
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF, is_plain=True)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        has_alpha = bool(bits >> 28 & 1)
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1, not has_alpha)
    if kind == b"VP8X":
        return _webp_extended(data)
    raise ImageRejected("image_corrupt", "unknown first chunk")


def _webp_extended(data: bytes) -> ImageHeader:
    flags, width, height = data[20], data[24:27], data[27:30]
    is_moving, has_alpha = bool(flags & 0x02), bool(flags & 0x10)
    place, orientation = 12, 1
    for _ in range(_MAX_PARTS):
        if place + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, place)
        if name == b"EXIF":
            exif = data[place + 8 : place + 8 + length]
            orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        place += 8 + length + length % 2
    return ImageHeader(
        "webp",
        int.from_bytes(width, "little") + 1,
        int.from_bytes(height, "little") + 1,
        orientation,
        not (is_moving or has_alpha) and orientation == 1,
    )


def _gif(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("gif", width, height)


def _bmp(data: bytes) -> ImageHeader:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return ImageHeader("bmp", abs(width), abs(height))


def _tiff(_: bytes) -> ImageHeader:
    return ImageHeader("tiff", 0, 0)  # Pillow tells the size, and turns TIFFs upright by itself


_READERS = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"RIFF": _webp,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}


def _unknown(data: bytes) -> ImageRejected:
    """What it is, if it is no image that is decoded here."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return ImageRejected("image_format_unsupported", "SVG")
    if start.startswith(
        (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<script")
    ):
        return ImageRejected("html_not_image")
    if data[4:8] == b"ftyp":
        return ImageRejected("image_format_unsupported", _BRANDS.get(data[8:12], "ISO media"))
    named = {
        b"\0\0\1\0": "ICO",
        b"8BPS": "PSD",
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
    }
    for signature, name in {**named, b"\0\0\0\x0cjP": "JPEG 2000"}.items():
        if data.startswith(signature):
            return ImageRejected("image_format_unsupported", name)
    return ImageRejected("not_an_image")
