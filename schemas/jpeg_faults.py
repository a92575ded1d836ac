"""Faults of JPEG files: which lose pixels, and how those that lose none are removed.

Harmless are:

- spectral selection in the scan header of a sequential JPEG: it has no meaning there (T.81, B.2.3); some phones set it;
- bytes between the segments of the header: decoders skip them;
- bytes before a marker, if they are no lost blocks (`schemas.jpeg_scans`);
- a missing end marker, where every scan is complete;
- an unknown JFIF version or Adobe transform, and a bad colour profile: decoders assume the usual ones.

Bit errors that give other valid codes are seen by no decoder, since a JPEG has no checksum.
"""

import re
from collections.abc import Callable, Iterator

from schemas.image_files import damaged
from schemas.jpeg_scans import without_stray

EXIF, SCAN = 0xE1, 0xDA
_JFIF, _PROFILE, _ADOBE, _INTERVAL, _END_CODE = 0xE0, 0xE2, 0xEE, 0xDD, 0xD9
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_END = b"\xff\xd9"
_MAX_SEGMENTS = 4096  # of one file; files of cameras have dozens
_STRAY = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker")


def mended(data: bytes, fault: str) -> bytes | None:
    """The bytes with a harmless fault removed; None where pixels are lost.

    Args:
        data: the file.
        fault: the first warning of libjpeg.
    """
    if _STRAY.match(fault):
        changed = _with_header(data, lambda _, segment: segment)
        changed = without_stray(data) if changed == data else changed
    elif fault == "Premature end of JPEG file":
        changed = data + _END if not has_end(data) and _is_complete(data) else None
    elif fault == "Invalid SOS parameters for sequential JPEG":
        changed = None if _frame(data)[0] else _sequential(data)
    else:
        changed = None
    return None if changed == data else changed


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
