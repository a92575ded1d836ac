"""Encoded images without their metadata: what is published holds pixels, their colour profile and nothing else.

    without_metadata(data, "jpeg")

Comments, EXIF, XMP, IPTC, thumbnails, text chunks and bytes behind the end are left out; the bytes of the pixels stay
as they are. A file of tens of megabytes may be 256 x 256 pixels and comments. Formats: ITU-T T.81 annex B, the PNG
specification (third edition), the WebP container (RFC 9649).
"""

import re
import struct

_JPEG_KEPT_APPS = frozenset({0xE0, 0xEE})
"""JFIF, and Adobe's, which says how colours are coded."""
_JPEG_ICC = b"ICC_PROFILE\0"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"sBIT"}
)
_WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"})
_WEBP_METADATA_FLAGS = 0x0C
"""EXIF and XMP, in the first byte of VP8X."""


def without_metadata(data: bytes, format: str) -> bytes | None:
    """The file without metadata (`data` itself if it has none), or None where its structure cannot be followed.

    Args:
        data: an upright image that can be decoded.
        format: jpeg, png or webp.
    """
    find = {"jpeg": _jpeg_parts, "png": _png_parts, "webp": _webp_parts}[format]
    try:
        parts = find(memoryview(data))
    except (struct.error, IndexError, ValueError):
        return None
    if sum(map(len, parts)) == len(data) and format != "webp":
        return data
    found = b"".join(parts)
    return data if found == data else found


def _jpeg_parts(data: memoryview) -> list[memoryview]:
    """Kept pieces: tables, frame and scans, each with its entropy-coded data; up to the end marker."""
    parts = [data[:2]]
    position = 2
    while True:
        marker = _JPEG_MARKER.match(data, position)
        if marker is None:
            raise ValueError("no marker where one must be")
        code, begin = marker.group(1)[0], marker.end() - 2
        if code == 0xD9:
            return [*parts, data[begin : begin + 2]]
        (length,) = struct.unpack_from(">H", data, begin + 2)
        position = begin + 2 + length
        if code == 0xDA:
            following = _JPEG_MARKER.search(data, position)
            position = len(data) if following is None else following.start()
        if position > len(data) or length < 2:
            raise ValueError("a segment that does not end")
        if _is_kept_segment(code, data[begin + 4 : begin + 16]):
            parts.append(data[begin:position])
        if position == len(data):
            return parts  # without an end marker, as found


def _is_kept_segment(code: int, start: memoryview) -> bool:
    if code == 0xE2:
        return start == _JPEG_ICC
    is_metadata = 0xE0 <= code <= 0xEF or code == 0xFE
    return code in _JPEG_KEPT_APPS or not is_metadata


def _png_parts(data: memoryview) -> list[memoryview]:
    parts = [data[: len(_PNG_SIGNATURE)]]
    position = len(_PNG_SIGNATURE)
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ValueError("a chunk that does not end")
        if name in _PNG_KEPT:
            parts.append(data[position:end])
        if name == b"IEND":
            break
        position = end
    return parts


def _webp_parts(data: memoryview) -> list[memoryview]:
    chunks: list[memoryview] = []
    (size,) = struct.unpack_from("<I", data, 4)
    position, end = 12, min(len(data), 8 + size)
    while position + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, position)
        following = position + 8 + length + length % 2
        if name == b"VP8X":
            flags = bytes([data[position + 8] & ~_WEBP_METADATA_FLAGS])
            chunks += [data[position : position + 8], memoryview(flags)]
            chunks.append(data[position + 9 : following])
        elif name in _WEBP_KEPT:
            chunks.append(data[position:following])
        position = following
    total = 4 + sum(map(len, chunks))
    return [data[:4], memoryview(struct.pack("<I", total)), data[8:12], *chunks]
