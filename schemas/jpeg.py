"""JPEG files: their header and their pixels, as libjpeg-turbo decodes them.

    header, data = read_header(data)
    pixels, data = decode(data, header, width, height)

libjpeg warns of damage and of harmless deviations alike. What decides is whether pixels are lost: each harmless fault
(`schemas.jpeg_faults`) is removed from the bytes, and then the decoder must have nothing to warn of. So the bytes that
are published are clean too.
"""

import struct
from dataclasses import dataclass
from typing import Any

import simplejpeg

from schemas.image_files import ImageError, damaged
from schemas.jpeg_faults import (
    EXIF,
    PROGRESSIVE,
    SCAN,
    has_end,
    mended,
    mended_header,
    segments,
)

MAX_SCANS = 64
"""Scans of a JPEG. Progressive ones have about ten; each may cost the time of a whole decode."""

_TURBO = {"YCbCr": "RGB", "RGB": "RGB", "Gray": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}
_MAX_FAULTS = 8


@dataclass(frozen=True)
class JpegHeader:
    """What precedes the pixels."""

    width: int
    height: int
    is_plain: bool
    """8 bits, three components."""
    exif: tuple[bytes, ...]
    """The EXIF data, from their TIFF header on."""
    colorspace: str
    """In which libjpeg-turbo decodes it: RGB or CMYK; empty if it does not."""


def read_header(data: bytes) -> tuple[JpegHeader, bytes]:
    """The header, and the bytes without harmless faults in it.

    Raises:
        ImageError: image_truncated, image_corrupt or image_too_many_scans.
    """
    exif: list[bytes] = []
    frame, kind, num_in_scan = b"", 0, 0
    for marker, start, end in segments(data):
        if marker == EXIF and data.startswith(b"Exif\0\0", start, end):
            exif.append(data[start + 6 : end])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, kind = data[start:end], marker
        elif marker == SCAN:
            num_in_scan = data[start] if end > start else 0
    if len(frame) < 6:
        raise damaged("jpeg", "image_truncated", "in the header")
    precision, height, width, num_components = struct.unpack_from(">BHHB", frame)
    if (kind in PROGRESSIVE or num_in_scan < num_components) and data.count(
        b"\xff\xda"
    ) > MAX_SCANS:
        raise ImageError(
            "image_too_many_scans",
            f"limit {MAX_SCANS}",
            f"the JPEG image has more than {MAX_SCANS} scans, the limit; save it again",
        )
    is_plain = precision == 8 and num_components == 3
    colorspace, data = _colorspace(data, (width, height))
    return JpegHeader(width, height, is_plain, tuple(exif), colorspace), data


def decode(
    data: bytes, header: JpegHeader, width: int, height: int, buffer: Any = None
) -> tuple[Any, bytes]:
    """The pixels as an array (height, width, 3 or 4) of uint8, and the bytes without harmless faults.

    Args:
        data: as `read_header` returns them.
        header: its header; the colour space is not empty.
        width: pixels, of one of the scales 1, 1/2, 1/4 and 1/8 of the image.
        height: pixels.
        buffer: of at least that many bytes; the pixels then lie in it.

    Raises:
        ImageError: image_truncated or image_corrupt.
    """
    scale: dict[str, Any] = {"min_width": width, "min_height": height, "buffer": buffer}
    clean: bytes | None = data
    for _ in range(_MAX_FAULTS):
        try:
            pixels = simplejpeg.decode_jpeg(clean, header.colorspace, strict=True, **scale)
            return pixels, clean
        except ValueError as error:
            clean = mended(clean, str(error))
        if clean is None:
            break
    raise damaged("jpeg", "image_corrupt" if has_end(data) else "image_truncated")


def _colorspace(data: bytes, size: tuple[int, int]) -> tuple[str, bytes]:
    """In which colour space libjpeg-turbo decodes the image, empty if it does not, and the bytes mended so far."""
    for _ in range(_MAX_FAULTS):
        try:
            height, width, name, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            clean = mended_header(data, str(error))
            if clean == data:
                return "", data
            data = clean
            continue
        if (width, height) != size:
            raise ImageError("image_corrupt", "two different sizes in the header")
        return _TURBO.get(name, ""), data
    return "", data
