"""Bytes of a JPEG that belong to nothing: put there, or blocks that damage has left over.

    clean = without_stray(data)   # None where they may be blocks

libjpeg says only that bytes are left over before a marker. Damage leaves them too: the decoder loses its place, and
counts its last block too early. Here every code is followed, so that the last bit of each scan is known. Bytes behind
it are taken as put there if

- no code does what encoders never do (more coefficients than a block has, a brightness far beyond black or white, empty
  blocks beyond the last one);
- the scan fills its last byte with ones, as encoders do;
- the bytes do not themselves end in whole blocks, filled with ones;
- every bit of every coefficient has its scan.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from schemas.jpeg_codes import (
    Bits,
    LostPlaceError,
    Table,
    blocks,
    end_of_bands,
    end_of_refinement,
    lookup,
)

MAX_BYTES = 8 << 20
"""Of a file that is looked into: a second per MiB."""
_MAX_BLOCKS = 1 << 23
"""Over all scans, for the same reason."""
_MAX_TAIL_BYTES = 1 << 14
"""Of the bytes left over, those that are looked into, from their end."""
_MIN_BLOCKS = 12
"""At the end of bytes left over: so many that noise hardly gives by chance."""
_MIN_TEXT_BYTES = 8
_MAX_DC = 1280
"""1,024 for samples of 8 bits, and what encoders go beyond it against ringing."""

_END, _SCAN, _HUFFMAN, _QUANTISATION, _INTERVAL, _RESTART = 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xD0
_FRAMES = {0xC0: False, 0xC1: False, 0xC2: True}
"""Whether the image is progressive. Arithmetic coding is not followed."""
_NOT_READ = frozenset({*range(0xE0, 0xF0), 0xFE})
_MARKER = re.compile(rb"\xff+[\x01-\xfe]")
_STUFFED = re.compile(rb"\xff+\0")
_ONE_BYTE = re.compile(rb"(.)\1*", re.DOTALL)
_TEXT = re.compile(rb"[\t\n\r -~]+")


@dataclass(frozen=True)
class _Component:
    blocks_of_mcu: int
    width: int
    """Blocks that hold pixels."""
    height: int
    stride: int
    """Blocks in a row, with those that only fill an MCU."""
    quantisation: int
    """Number of its table."""
    is_set: bytearray
    """Of a progressive image, which coefficients are not zero, 64 a block."""
    missing: set[int]
    """Coefficients whose lowest bit has no scan yet."""


@dataclass
class _Image:
    """What the segments so far have said."""

    is_progressive: bool = False
    interval: int = 0
    """MCUs between restart markers; 0 without."""
    num_mcus: int = 0
    components: dict[int, _Component] = field(default_factory=dict)
    huffman: dict[int, Table] = field(default_factory=dict)
    """By class and number as in the file: from 0x00 on DC, from 0x10 on AC."""
    dc_steps: dict[int, int] = field(default_factory=dict)
    """Of each quantisation table the value for DC."""


@dataclass(frozen=True)
class _Scan:
    components: Sequence[_Component]
    owners: Sequence[int]
    """Of each block of an MCU, the index of its component."""
    tables: Sequence[tuple[Table, Table]]
    """Of each block of an MCU, DC and AC; an empty one where the scan has no such coefficients."""
    dc_units: Sequence[int]
    """Of each component, what a DC coefficient of 1 means."""
    first: int
    last: int
    is_refinement: bool
    num_mcus: int


def without_stray(data: bytes) -> bytes | None:
    """The file without bytes that belong to no segment and no scan; None where they may be lost blocks.

    Args:
        data: a JPEG whose header libjpeg accepts, with an end marker.
    """
    if len(data) > MAX_BYTES:
        return None
    try:
        return b"".join(_pieces(data))
    except (LostPlaceError, LookupError, ValueError, ZeroDivisionError):  # or a damaged header
        return None


def _pieces(data: bytes) -> Iterator[bytes]:
    image, position, num_blocks = _Image(), 2, 0
    yield data[:2]
    while True:
        marker = _MARKER.search(data, position)
        if marker is None:
            raise LostPlaceError
        code, start = data[marker.end() - 1], marker.end()
        if code == _END:
            break
        position = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
        yield data[start - 2 : position]
        if code != _SCAN:
            _read_segment(image, code, data[start + 2 : position])
            continue
        scan = _read_scan(image, data[start + 2 : position])
        num_blocks += scan.num_mcus * len(scan.tables)
        if num_blocks > _MAX_BLOCKS:
            raise LostPlaceError
        for piece, behind in _intervals(data, position, scan, image.interval):
            yield piece
            position = behind
    if any(component.missing for component in image.components.values()):
        raise LostPlaceError
    yield data[start - 2 :]


def _read_segment(image: _Image, code: int, contents: bytes) -> None:
    if code == _HUFFMAN:
        while contents:
            end = 17 + sum(contents[1:17])
            image.huffman[contents[0]] = lookup(contents[1:17], contents[17:end])
            contents = contents[end:]
    elif code == _QUANTISATION:
        while contents:
            num_bytes = 2 if contents[0] >> 4 else 1
            image.dc_steps[contents[0] & 15] = int.from_bytes(contents[1 : 1 + num_bytes], "big")
            contents = contents[1 + 64 * num_bytes :]
    elif code == _INTERVAL:
        image.interval = int.from_bytes(contents, "big")
    elif code in _FRAMES:
        _read_frame(image, _FRAMES[code], contents)
    elif code not in _NOT_READ:
        raise LostPlaceError


def _read_frame(image: _Image, is_progressive: bool, contents: bytes) -> None:
    height, width = (int.from_bytes(contents[n : n + 2], "big") for n in (1, 3))
    given = [contents[n : n + 3] for n in range(6, 6 + 3 * contents[5], 3)]
    widest, highest = max(g[1] >> 4 for g in given), max(g[1] & 15 for g in given)
    columns, rows = -(-width // (8 * widest)), -(-height // (8 * highest))
    if columns * rows * len(given) > _MAX_BLOCKS:
        raise LostPlaceError
    image.is_progressive, image.num_mcus = is_progressive, columns * rows
    for number, factors, quantisation in given:
        across, down = factors >> 4, factors & 15
        num_set = 64 * columns * across * rows * down if is_progressive else 0
        image.components[number] = _Component(
            blocks_of_mcu=across * down,
            width=-(-width * across // (8 * widest)),
            height=-(-height * down // (8 * highest)),
            stride=columns * across,
            quantisation=quantisation,
            is_set=bytearray(num_set),
            missing=set(range(64)),
        )


def _read_scan(image: _Image, contents: bytes) -> _Scan:
    given = [contents[n : n + 2] for n in range(1, 1 + 2 * contents[0], 2)]
    first, last, bits = contents[1 + 2 * len(given) :] if image.is_progressive else b"\0\x3f\0"
    components = [image.components[number] for number, _ in given]
    owners, tables = [], []
    for index, (owner, (_, selected)) in enumerate(zip(components, given, strict=True)):
        if bits & 15 == 0:
            owner.missing.difference_update(range(first, last + 1))
        num_blocks = owner.blocks_of_mcu if len(given) > 1 else 1
        dc = image.huffman[selected >> 4] if first == 0 and bits >> 4 == 0 else ()
        ac = image.huffman[0x10 | selected & 15] if last > 0 else ()
        owners += [index] * num_blocks
        tables += [(dc, ac)] * num_blocks
    return _Scan(
        components=components,
        owners=owners,
        tables=tables,
        dc_units=[max(image.dc_steps[c.quantisation] << (bits & 15), 1) for c in components],
        first=first,
        last=last,
        is_refinement=bits >> 4 > 0,
        num_mcus=image.num_mcus if len(given) > 1 else components[0].width * components[0].height,
    )


def _intervals(
    data: bytes, position: int, scan: _Scan, interval: int
) -> Iterator[tuple[bytes, int]]:
    """The scan piece by piece, each with the position behind it in the file, where stray bytes may lie."""
    interval = interval or scan.num_mcus
    for number, first in enumerate(range(0, scan.num_mcus, interval)):
        marker = _MARKER.search(data, position)
        stop = marker.start() if marker else len(data)
        bits = Bits(_STUFFED.sub(b"\xff", data[position:stop]))
        end = _end(bits, scan, first, min(interval, scan.num_mcus - first))
        num_bytes = -(-end // 8)
        if num_bytes < len(bits.data) and not _is_put_there(bits, end, scan):
            raise LostPlaceError
        piece, position = bits.data[:num_bytes].replace(b"\xff", b"\xff\0"), stop
        if first + interval < scan.num_mcus:
            if marker is None or data[marker.end() - 1] != _RESTART + number % 8:
                raise LostPlaceError
            piece, position = piece + bytes([0xFF, _RESTART + number % 8]), marker.end()
        yield piece, position


def _end(bits: Bits, scan: _Scan, first_mcu: int, num_mcus: int) -> int:
    """Behind the last bit of so many MCUs; raises `LostPlaceError`."""
    if scan.first > 0:
        (owner,) = scan.components
        numbers = range(first_mcu, first_mcu + num_mcus)
        starts = (64 * (n // owner.width * owner.stride + n % owner.width) for n in numbers)
        follow = end_of_refinement if scan.is_refinement else end_of_bands
        return follow(bits, scan.tables[0][1], scan.first, scan.last, starts, owner.is_set)
    if scan.is_refinement:
        end = num_mcus * len(scan.owners)
    else:
        end = _end_of_blocks(bits, scan, num_mcus * len(scan.owners))
    if end > bits.size:
        raise LostPlaceError
    return end


def _end_of_blocks(bits: Bits, scan: _Scan, num_blocks: int) -> int:
    position, number, values = 0, 0, [0] * len(scan.components)
    limits = [_MAX_DC // unit + 1 for unit in scan.dc_units]
    for number, block in enumerate(islice(blocks(bits, 0, scan.tables), num_blocks), 1):
        position, difference, is_possible = block
        owner = scan.owners[(number - 1) % len(scan.owners)]
        values[owner] += difference
        if not is_possible or abs(values[owner]) > limits[owner]:
            raise LostPlaceError
    if number < num_blocks:
        raise LostPlaceError
    return position


def _is_put_there(bits: Bits, end: int, scan: _Scan) -> bool:
    """Whether the bytes behind the last block are no blocks."""
    if not bits.is_filled(end):
        return False
    stray = bits.data[-(-end // 8) :]
    if _ONE_BYTE.fullmatch(stray):  # of a file that was filled up with zeros, blocks are zeros too
        return end % 8 > 0 or bits.data[: end // 8][-2:] != 2 * stray[:1]
    if _TEXT.fullmatch(stray) and len(stray) >= _MIN_TEXT_BYTES:
        return True
    is_sequential = scan.first == 0 and scan.last == 63
    return not (is_sequential and _ends_in_blocks(bits, end, scan))


def _ends_in_blocks(bits: Bits, end: int, scan: _Scan) -> bool:
    """Whether the bits from here on come to their end with a whole MCU, wherever in an MCU they begin."""
    start = max(end, bits.size - 8 * _MAX_TAIL_BYTES)
    phases = range(len(scan.tables))
    return any(_lead_to_the_end(bits, start, scan, phase) for phase in phases)


def _lead_to_the_end(bits: Bits, start: int, scan: _Scan, phase: int) -> bool:
    """Whether the last MCUs are sound, and end where the bytes do.

    Args:
        bits: of the scan.
        start: bit at which the bytes begin.
        scan: its tables.
        phase: index of the first block in its MCU.
    """
    num_of_mcu = len(scan.tables)
    are_all_sound = is_sound = phase == 0  # of another phase, the first MCU is not whole
    num_sound, boundary = 0, -8
    found = blocks(bits, start, scan.tables, phase)
    for number, (position, _, is_possible) in enumerate(found, phase + 1):
        if position > bits.size:
            break
        is_sound = is_sound and is_possible
        if number % num_of_mcu == 0:
            are_all_sound = are_all_sound and is_sound
            num_sound = num_sound + num_of_mcu if is_sound else 0
            boundary, is_sound = position, True
    are_enough = num_sound >= (1 if are_all_sound else _MIN_BLOCKS)
    return are_enough and bits.size - boundary < 8 and bits.is_filled(boundary)
