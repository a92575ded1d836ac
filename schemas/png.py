"""PNG files: what of them their pixels need, and whether pixels are lost.

Metadata is left out: decoders fail on much of it (Pillow on more than 1 MiB), and it is not published. An ancillary
chunk whose CRC is wrong is left out too, as libpng does. Where the CRC of pixel data is wrong or the end is missing,
the data must inflate to their end, checksum included: then every pixel is there, and the chunk gets a right CRC.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.image_errors import damaged

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset({b"tRNS", b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
_MAX_PROFILE = 1 << 20  # bytes; Pillow reads no larger one
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type

_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""First column, first row and steps of the passes."""


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


def read(data: bytes) -> Png:
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


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the contents of each chunk; the last may be cut."""
    position = len(_SIGNATURE)
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
    return b"".join((_SIGNATURE, *(p for each in pieces for p in each), _chunk(b"IEND", b"")))


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
