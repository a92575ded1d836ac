"""Image files before they are decoded: their format, the error for those that cannot be used, chunks of PNG and WebP.

Of PNGs, metadata is left out: decoders fail on much of it (Pillow on more than 1 MiB), and it is not published. An
ancillary chunk whose CRC is wrong is left out too, as libpng does. Where the CRC of pixel data is wrong or the end is
missing, the data must inflate to their end, checksum included: then every pixel is there, and the CRC is corrected.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"

_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
_UNSUPPORTED = {
    b"\0\0\1\0": "ICO",
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP": "JPEG 2000",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<script")
_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset({b"tRNS", b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
_MAX_PROFILE = 1 << 20  # bytes; Pillow reads no larger one
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type

_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""First column, first row and steps of the passes."""


class ImageError(ValueError):
    """Bytes that are not an image that can be used; the text is for a person, with value, limit and hint.

    Args:
        reason: a reason word: not_an_image, html_not_image, image_format_unsupported, image_too_many_pixels,
            image_too_many_scans, image_truncated or image_corrupt.
        detail: more on the reason for a ledger; equal for equal bytes.
        message: the text; None makes one from reason and detail.
    """

    def __init__(self, reason: str, detail: str | None = None, message: str | None = None) -> None:
        super().__init__(message or (reason if detail is None else f"{reason}: {detail}"))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str | None, str]]:
        return type(self), (self.reason, self.detail, str(self))

    def at(self, where: str) -> "ImageError":
        """The same error with the place of the image in front of its text."""
        return type(self)(self.reason, self.detail, f"{where}: {self}")


def format_of(data: bytes) -> str:
    """The format by the first bytes: jpeg, png, webp, gif, bmp or tiff; raises `ImageError` for any other."""
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature) and (kind != "webp" or data[8:12] == b"WEBP"):
            return kind
    raise _unknown(data)


def damaged(kind: str, reason: str, detail: str | None = None) -> ImageError:
    """Our own words: messages of decoders hold object addresses and positions."""
    name = {"webp": "WebP"}.get(kind, kind.upper())
    fault = ": it ends too early" if reason == "image_truncated" else ""
    more = "" if detail is None else f" ({detail})"
    return ImageError(reason, detail, f"the {name} image is damaged{fault}{more}; save it again")


def too_large(error: Any) -> ImageError:
    """The error for an image that the decoder itself refuses as too large."""
    detail = "above the decoder's own limit"
    return ImageError("image_too_many_pixels", detail, f"the image is too large: {error}")


@dataclass(frozen=True)
class Png:
    """A PNG without metadata beside its colour profile and orientation."""

    data: bytes
    is_still: bool
    doubtful: bytes = b""
    """Pixel data that are to be checked with `check`, since a CRC is wrong or the end is missing."""
    is_cut: bool = False

    def check(self) -> bool:
        """Whether others can read the bytes; False if every pixel is there, but the checksum at their end is cut off.

        Takes as long as a decode where there are doubts; call it when the size is known to be permitted.

        Raises:
            ImageError: image_truncated or image_corrupt, if pixels are lost.
        """
        if not self.doubtful:
            return True
        num_bytes, has_checksum = _inflated(self.data, self.doubtful)
        if not has_checksum and (not self.is_cut or num_bytes < _num_raw_bytes(self.data)):
            raise damaged("png", "image_truncated" if self.is_cut else "image_corrupt")
        return has_checksum


def read_png(data: bytes) -> Png:
    """What of a PNG its pixels need.

    Raises:
        ImageError: image_truncated where there are no pixel data.
    """
    before: list[bytes] = []
    pixels: list[tuple[int, int]] = []
    after: list[bytes] = []
    is_sure, is_still, has_end = True, True, False
    for name, start, end in _chunks(data):
        if name == b"IEND":
            has_end = True
            break
        if name == b"IDAT":
            is_sure &= not after and _is_right(data, start, end)
            pixels.append((start, end))
            continue
        is_still &= name != b"acTL"
        is_kept = name in _KEPT and _is_right(data, start, end) and _is_small(name, data[start:end])
        if is_kept or not name[0] & 0x20:  # a critical one
            (after if pixels else before).append(data[start - 8 : end + 4])
        elif pixels:
            after.append(b"")
    if not pixels:
        raise damaged("png", "image_truncated", "in the header")
    if is_sure and has_end:
        idat = [data[start - 8 : end + 4] for start, end in pixels]
        return Png(_joined(before, idat, after), is_still)
    body = b"".join(data[start:end] for start, end in pixels)
    whole = _joined(before, [_chunk(b"IDAT", body)], after)
    return Png(whole, is_still, body, is_cut=not has_end)


def whole_webp(data: bytes) -> bytes:
    """The WebP; where it is cut behind its pixels, without the metadata that are not whole.

    Raises:
        ImageError: image_truncated if pixels are missing.
    """
    if len(data) >= 8 + int.from_bytes(data[4:8], "little"):
        return data
    position, has_pixels = 12, False
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > len(data):
            break
        has_pixels |= name in (b"VP8 ", b"VP8L")
        position += 8 + length + length % 2
    if not has_pixels:
        raise damaged("webp", "image_truncated", "shorter than its header says")
    body = data[8:position].ljust(position - 8, b"\0")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def lossy_webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a whole WebP of one chunk, `VP8 `: still, opaque, without metadata; None for any other.

    Source: RFC 9649, section 2.5; RFC 6386, section 9.1.
    """
    is_simple = data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and len(data) >= 30
    # The third of these octets begins a key frame of VP8.
    if not is_simple or data[20] & 1 or data[23:26] != b"\x9d\x01\x2a":
        return None
    num_bytes, num_pixel_bytes = struct.unpack_from("<I8xI", data, 4)
    if not len(data) == num_bytes + 8 == num_pixel_bytes + num_pixel_bytes % 2 + 20:
        return None
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the contents of each chunk; the last may be cut."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if not name.isalpha():
            return
        yield name, position + 8, min(position + 8 + length, len(data))
        position += 12 + length


def _is_right(data: bytes, start: int, end: int) -> bool:
    """Whether the chunk is whole and its CRC right."""
    crc = zlib.crc32(memoryview(data)[start - 4 : end])
    return data[end : end + 4] == struct.pack(">I", crc)


def _is_small(name: bytes, contents: bytes) -> bool:
    """False for a colour profile that is too large or damaged."""
    if name != b"iCCP":
        return True
    _, _, packed = contents.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed[1:], _MAX_PROFILE)
    except zlib.error:
        return False
    return unpacker.eof


def _chunk(name: bytes, contents: bytes) -> bytes:
    crc = zlib.crc32(contents, zlib.crc32(name))
    return b"".join((struct.pack(">I", len(contents)), name, contents, struct.pack(">I", crc)))


def _joined(*pieces: Sequence[bytes]) -> bytes:
    return b"".join((_PNG, *(p for each in pieces for p in each), _chunk(b"IEND", b"")))


def _inflated(data: bytes, body: bytes) -> tuple[int, bool]:
    """How many bytes the pixel data inflate to, and whether a right checksum follows; no more than the pixels take."""
    num_bytes, limit = 0, _num_raw_bytes(data)
    unpacker = zlib.decompressobj()
    try:
        while not unpacker.eof and num_bytes <= limit and body:
            num_bytes += len(unpacker.decompress(body, 1 << 18))
            body = unpacker.unconsumed_tail
    except zlib.error:
        return 0, False
    return num_bytes, unpacker.eof


def _num_raw_bytes(data: bytes) -> int:
    """Bytes of the rows with their filter bytes (PNG specification, sections 7.2 and 8.1)."""
    width, height, bits, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits *= _CHANNELS.get(colours, 4)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(
        rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 < rows
    )


def _unknown(data: bytes) -> ImageError:
    """What it is, if it is not an image that is decoded here."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return unsupported("SVG")
    if start.startswith(_MARKUP):
        message = f"the bytes are a page of HTML or XML, not an image; give {FORMATS}"
        return ImageError("html_not_image", None, message)
    if data[4:8] == b"ftyp":
        return unsupported(_BRANDS.get(data[8:12], "ISO media"))
    for signature, name in _UNSUPPORTED.items():
        if data.startswith(signature):
            return unsupported(name)
    message = f"{len(data):,} bytes that start with {data[:8]!r} are not an image; give {FORMATS}"
    if not data:
        message = f"the image is empty (0 bytes); give {FORMATS}"
    return ImageError("not_an_image", None, message)


def unsupported(name: str) -> ImageError:
    """The error for a kind of image that is known and not decoded."""
    message = f"images in the format {name} are not supported; give {FORMATS}"
    return ImageError("image_format_unsupported", name, message)
