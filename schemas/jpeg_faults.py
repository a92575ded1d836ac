"""Faults of JPEG files: which lose pixels, and how those that lose none are removed.

Harmless are:

- spectral selection in the scan header of a sequential JPEG: it has no meaning there (T.81, B.2.3); some phones set it;
- bytes between the segments of the header: decoders skip them;
- bytes before a marker, where the scan before it has come to its end (`_without_stray`);
- a missing end marker, where every scan is complete;
- an unknown JFIF version or Adobe transform, and a bad colour profile: decoders assume the usual ones.

Bit errors that give other valid codes are seen by no decoder, since a JPEG has no checksum.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import simplejpeg

from schemas.image_files import damaged

EXIF, SCAN = 0xE1, 0xDA
_JFIF, _PROFILE, _ADOBE, _INTERVAL, _END_CODE = 0xE0, 0xE2, 0xEE, 0xDD, 0xD9
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_END = b"\xff\xd9"
_MAX_SEGMENTS = 4096  # of one file; files of cameras have dozens
_MAX_DECODED_PIXELS = 1 << 28  # while faults are looked into
_MAX_STRAY_BLOCKS, _MAX_STRAY_BYTES = 1 << 10, 1 << 14
_BUFFERED_BYTES = 8  # that libjpeg has read ahead, and does not count as stray
_STRAY = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_STRAY_TEXT = "Corrupt JPEG data: {} extraneous bytes before marker 0x{:02x}"
_CUT_SCAN = "Corrupt JPEG data: premature end of data segment"


class Decoder:
    """libjpeg-turbo at one scale, and a limit on what it decodes to look into faults.

    Args:
        colorspace: RGB or CMYK.
        width: pixels of the image.
        height: pixels.
        min_width: pixels of the scale.
        min_height: pixels.
        buffer: where the pixels are put, or None.
    """

    def __init__(
        self,
        colorspace: str,
        width: int,
        height: int,
        min_width: int,
        min_height: int,
        buffer: Any,
    ) -> None:
        self._colorspace = colorspace
        self._options = {"min_width": min_width, "min_height": min_height, "buffer": buffer}
        self._num_left = 12 + _MAX_DECODED_PIXELS // (width * height)

    def pixels(self, data: bytes) -> Any:
        """The pixels at the scale; raises ValueError for whatever libjpeg warns of."""
        return simplejpeg.decode_jpeg(data, self._colorspace, strict=True, **self._options)

    def fault(self, data: bytes) -> str:
        """The first warning; empty without."""
        self._count()
        try:
            simplejpeg.decode_jpeg(data, self._colorspace, strict=True)
        except ValueError as error:
            return str(error)
        return ""

    def whole(self, data: bytes) -> bytes:
        """The pixels at full size, whatever libjpeg warns of."""
        self._count()
        return simplejpeg.decode_jpeg(data, self._colorspace, strict=False).tobytes()

    def _count(self) -> None:
        self._num_left -= 1
        if self._num_left < 0:
            raise damaged("jpeg", "image_corrupt")


def mended(data: bytes, fault: str, decoder: Decoder) -> bytes | None:
    """The bytes with a harmless fault removed; None where pixels are lost.

    Args:
        data: the file.
        fault: the first warning of libjpeg.
        decoder: to look into it.
    """
    stray = _STRAY.match(fault)
    if stray:
        return _without_stray(data, fault, int(stray[1]), bytes.fromhex("ff" + stray[2]), decoder)
    if fault == "Premature end of JPEG file":
        return data + _END if not has_end(data) and _is_complete(data) else None
    if fault == "Invalid SOS parameters for sequential JPEG":
        changed = _sequential(data)
        return None if changed == data or _frame(data)[0] else changed
    return None


def has_end(data: bytes) -> bool:
    """Whether there is an end marker behind the first scan header."""
    return data.find(_END, _first_scan(data)) >= 0


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Markers of the header with start and end of their contents, up to the first scan and with its header."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)  # like libjpeg, skip what is between segments
        while 0 <= position < len(data) and data[position] == 0xFF:
            position += 1
        if position < 0 or position >= len(data):
            break
        marker = data[position]
        position += 1
        if marker == 0 or marker in _BARE:
            continue
        if marker == _END_CODE:
            return
        if position + 2 > len(data):
            break
        length = max(data[position] << 8 | data[position + 1], 2)
        if position + length > len(data):
            break
        yield marker, position + 2, position + length
        if marker == SCAN:
            return
        position += length
    raise damaged("jpeg", "image_truncated", "in the header")


def mended_header(data: bytes, fault: str) -> bytes:
    """The bytes with the fault in the header removed; the same where it is another fault."""
    if _STRAY.match(fault):
        return _with_header(data, lambda marker, segment: segment)
    if fault == "Corrupt JPEG data: bad ICC marker":
        return _with_header(data, lambda marker, segment: b"" if marker == _PROFILE else segment)
    if fault.startswith("Warning: unknown JFIF revision"):
        return _with_header(data, _usual_jfif)
    if fault.startswith("Unknown Adobe color transform"):
        return _with_header(data, _usual_adobe)
    return data


def _with_header(data: bytes, change: Callable[[int, bytes], bytes]) -> bytes:
    """The bytes with each segment of the header changed, and nothing between the segments."""
    pieces, end = [data[:2]], 2
    for marker, start, end in segments(data):
        pieces.append(change(marker, b"\xff" + bytes([marker]) + data[start - 2 : end]))
    return b"".join(pieces) + data[end:]


def _usual_jfif(marker: int, segment: bytes) -> bytes:
    is_jfif = marker == _JFIF and segment[4:9] == b"JFIF\0"
    return segment[:9] + b"\1\2" + segment[11:] if is_jfif else segment


def _usual_adobe(marker: int, segment: bytes) -> bytes:
    """With the transform that libjpeg assumes: YCbCr. (Of four components YCCK, but their number comes later.)"""
    is_adobe = marker == _ADOBE and segment[4:9] == b"Adobe" and len(segment) >= 16
    return segment[:15] + b"\1" + segment[16:] if is_adobe else segment


def _first_scan(data: bytes) -> int:
    """Index of the marker of the first scan."""
    return next(start - 4 for marker, start, _ in segments(data) if marker == SCAN)


def _scans(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Of each scan header: index of its last three bytes, component numbers, and these bytes (Ss, Se, Ah and Al)."""
    start = _first_scan(data)
    while 0 <= start < len(data) - 5:
        last = start + 5 + 2 * data[start + 4]
        yield last, data[start + 5 : last : 2], data[last : last + 3]
        start = data.find(b"\xff\xda", start + 2)


def _sequential(data: bytes) -> bytes:
    """The bytes with scan headers as a sequential JPEG has them (T.81, table B.3)."""
    changed = bytearray(data)
    for last, _, _ in _scans(data):
        changed[last : last + 3] = b"\0\x3f\0"
    return bytes(changed)


def _frame(data: bytes) -> tuple[bool, bytes]:
    """Whether the image is progressive, and the contents of its frame header (SOF)."""
    frames = (
        (m, data[s:e]) for m, s, e in segments(data) if 0xC0 <= m <= 0xCF and m not in _NO_FRAME
    )
    marker, frame = next(frames)
    return marker in PROGRESSIVE, frame


def _is_complete(data: bytes) -> bool:
    """Whether there are scans for every bit of every coefficient; whether the last one is whole the decoder tells."""
    is_progressive, frame = _frame(data)
    missing = {component: set(range(64)) for component in frame[6::3]}
    for _, components, parameters in _scans(data):
        if len(parameters) < 3:
            return False
        first, last, bits = parameters if is_progressive else b"\0\x3f\0"
        for component in components:
            if bits & 0x0F == 0:  # the lowest bits
                missing.get(component, set()).difference_update(range(first, last + 1))
    return not any(missing.values())


def _without_stray(
    data: bytes, fault: str, num_stray: int, marker: bytes, decoder: Decoder
) -> bytes | None:
    """The bytes without those before a marker, where the scan before them has come to its end; else None.

    Damage inside a scan also leaves bytes over: the decoder loses its place and finds its last block too early. But
    encoders fill the last byte of a scan with ones (T.81, F.1.2.3), and what damage leaves over are whole blocks.
    """
    changed = _with_header(data, lambda _, segment: segment)
    if changed != data:
        return changed
    end = _marker_behind_stray(data, fault, num_stray, marker, decoder)
    if end is None:
        return None
    rest = data[end:]
    if _ends_segment(data, end - num_stray):
        return data[: end - num_stray] + rest
    low, high = end - num_stray - _BUFFERED_BYTES - 1, end - num_stray + 1
    while high - low > 1:  # the fewest bytes that hold all blocks
        middle = (low + high) // 2
        if decoder.fault(data[:middle] + rest) == _CUT_SCAN:
            low = middle
        else:
            high = middle
    scan = data[:high]
    if decoder.fault(scan + rest) == fault:
        return None
    num_free = _num_free_bits(scan, rest, decoder)
    if _frame(data)[0]:  # the last bits of progressive scans often change no pixel
        num_free = min(num_free, 1)
    ones = (1 << num_free) - 1
    if scan[-1] & ones != ones and not scan.endswith(b"\xff\0"):
        return None
    return None if _are_blocks(data, scan[-1] & ones, num_free, data[high:end]) else scan + rest


def _marker_behind_stray(
    data: bytes, fault: str, num_stray: int, marker: bytes, decoder: Decoder
) -> int | None:
    """Index of the first marker of this kind that has so many stray bytes before it."""
    found, start = [], data.find(marker, _first_scan(data) + 2)
    while start >= 0 and (not found or marker != _END):
        found.append(start)
        start = data.find(marker, start + 2)
    if len(found) < 2:
        return found[0] if found else None
    same = (fault, _STRAY_TEXT.format(num_stray, _END[1]))
    low, high = 0, len(found) - 1
    while low < high:
        middle = (low + high) // 2
        if decoder.fault(data[: found[middle]] + _END) in same:
            high = middle
        else:
            low = middle + 1
    return found[low]


def _ends_segment(data: bytes, end: int) -> bool:
    """Whether a table or comment between two scans ends at this index."""
    starts = (data.rfind(b"\xff" + code, 0, end) for code in (b"\xc4", b"\xdb", b"\xdd", b"\xfe"))
    return any(s >= 0 and s + 2 + int.from_bytes(data[s + 2 : s + 4], "big") == end for s in starts)


def _num_free_bits(scan: bytes, rest: bytes, decoder: Decoder) -> int:
    """How many of the last bits of a scan change no pixel, 0 to 7."""
    if scan.endswith(b"\xff\0"):
        return 0
    pixels = decoder.whole(scan + rest)
    for num_free in range(7):
        flipped = scan[-1] ^ ((2 << num_free) - 1)
        changed = scan[:-1] + bytes([flipped] if flipped != 0xFF else [0xFF, 0])
        if decoder.whole(changed + rest) != pixels:
            return num_free
    return 7


def _are_blocks(data: bytes, first_bits: int, num_bits: int, stray: bytes) -> bool:
    """Whether bits and bytes left over are whole blocks of this sequential image, up to the padding."""
    is_progressive, frame = _frame(data)
    _, components, _ = next(_scans(data))
    if is_progressive or len(components) != len(frame[6::3]) or len(stray) > _MAX_STRAY_BYTES:
        return False
    packed = stray.replace(b"\xff\0", b"\xff")
    num_all = num_bits + 8 * len(packed)
    value = first_bits << 8 * len(packed) | int.from_bytes(packed, "big")
    num_pad = -num_all % 8
    scan = (value << num_pad | (1 << num_pad) - 1).to_bytes((num_all + num_pad) // 8, "big")

    def fit(num_blocks: int, scan: bytes) -> bool:
        head = _with_header(data, lambda m, segment: _small(m, segment, num_blocks))
        head = head[: next(end for m, _, end in segments(head) if m == SCAN)]
        try:
            simplejpeg.decode_jpeg(head + scan.replace(b"\xff", b"\xff\0") + _END, strict=True)
        except ValueError as error:
            return str(error) != _CUT_SCAN
        return True

    low, high = 0, 1
    while high < _MAX_STRAY_BLOCKS and fit(high, scan):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle, scan) else (low, middle)
    is_filled = low > 0 and packed[-1:] != b"" and packed[-1] & 1 == 1
    num_cut = 2 if scan[-1:] == b"\xff" else 1
    return is_filled and not fit(low, scan[:-num_cut])


def _small(marker: int, segment: bytes, num_blocks: int) -> bytes:
    """The segment for an image of so many MCUs, one above the other, without restarts."""
    if marker == _INTERVAL:
        return b""
    if not 0xC0 <= marker <= 0xCF or marker in _NO_FRAME:
        return segment
    factors = segment[11::3] if len(segment) > 13 else b"\x11"
    width, height = (8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors))
    size = (num_blocks * height).to_bytes(2, "big") + width.to_bytes(2, "big")
    return segment[:5] + size + segment[9:]
