"""The Huffman codes of JPEG scans, followed without pixels: where each block ends.

Sequential and progressive coding (ITU-T T.81, sections F.2 and G.2). What encoders never write, though decoders take
it, is told: it means that the decoder has lost its place. Positions are bits from the start of the data.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice

_MAX_DC_BITS = 11  # of a difference, for samples of 8 bits (T.81, table F.1)

Table = Sequence[int]
"""For each 16 bits, symbol << 8 | length of the code that they begin with; 0 where there is none."""


class LostPlaceError(Exception):
    """Codes that no encoder writes."""


class Bits:
    """Entropy-coded data.

    Args:
        data: without stuffed zeros.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = 8 * len(data)
        num_words = len(data) // 4 + 64  # a block of 63 codes may begin with the last bit
        padded = data + bytes(4 * num_words + 4 - len(data))
        self.words = array("I", bytes(16 * num_words))
        """The 32 bits from each byte on."""
        for offset in range(4):
            words = array("I", padded[offset : offset + 4 * num_words])
            if sys.byteorder == "little":
                words.byteswap()
            self.words[offset::4] = words

    def is_filled(self, position: int) -> bool:
        """Whether all bits are ones from here to the end of the byte, as encoders fill it (T.81, F.1.2.3)."""
        ones = (1 << -position % 8) - 1
        return ones == 0 or self.data[position >> 3] & ones == ones


def lookup(counts: bytes, symbols: bytes) -> Table:
    """The table of a Huffman code.

    Args:
        counts: of codes of 1 to 16 bits, as in the file.
        symbols: in the order of their codes.
    """
    table = array("I", bytes(4 << 16))
    start = index = 0
    for num_bits, count in enumerate(counts, 1):
        width = 1 << 16 - num_bits
        for symbol in symbols[index : index + count]:
            table[start : start + width] = array("I", [symbol << 8 | num_bits]) * width
            start += width
        index += count
    if len(table) != 1 << 16:
        raise LostPlaceError
    return table


def blocks(
    bits: Bits, position: int, tables: Sequence[tuple[Table, Table]], phase: int = 0
) -> Iterator[tuple[int, int, bool]]:
    """Blocks as long as there are bits: position behind each, DC difference, and whether encoders write such a block.

    Args:
        bits: a sequential scan, or the first DC scan of a progressive image.
        position: of the first block.
        tables: DC and AC, for each block of an MCU; an empty AC table for DC alone.
        phase: index of the first block in its MCU.
    """
    words, size = bits.words, bits.size
    for dc, ac in islice(cycle(tables), phase, None):
        if position >= size:
            return
        code = dc[words[position >> 3] >> 16 - (position & 7) & 0xFFFF]
        num_bits = code >> 8
        is_possible = code != 0 and num_bits <= _MAX_DC_BITS
        position += code & 0xFF
        difference = 0
        if num_bits and is_possible:
            value = (words[position >> 3] << (position & 7) & 0xFFFFFFFF) >> 32 - num_bits
            difference = value if value >> num_bits - 1 else value + 1 - (1 << num_bits)
            position += num_bits
        index = 1 if ac else 64
        while index < 64 and position < size:
            code = ac[words[position >> 3] >> 16 - (position & 7) & 0xFFFF]
            num_bits = code >> 8 & 15
            position += (code & 0xFF) + num_bits
            if num_bits:
                index += (code >> 12) + 1
            elif code >> 12 == 15:
                index += 16
            else:
                is_possible = is_possible and code != 0
                break
        position += code == 0  # goes on somewhere
        yield position, difference, is_possible and index <= 64


def end_of_bands(
    bits: Bits, table: Table, first: int, last: int, starts: Iterable[int], is_set: bytearray
) -> int:
    """Position behind the first scan of AC coefficients of a progressive image.

    Args:
        bits: of one restart interval.
        table: AC.
        first: coefficient of the scan, in zigzag order.
        last: coefficient of the scan.
        starts: of each block in `is_set`.
        is_set: which coefficients are not zero; those of the scan are added.

    Raises:
        LostPlaceError: codes that no encoder writes, or too few of them.
    """
    words, size, position, num_empty = bits.words, bits.size, 0, 0
    for start in starts:
        if num_empty:
            num_empty -= 1
            continue
        index, code = first, 0
        while index <= last and position < size:
            code = table[words[position >> 3] >> 16 - (position & 7) & 0xFFFF]
            position += code & 0xFF
            run, num_bits = code >> 12, code >> 8 & 15
            if num_bits:
                index += run
                if index > last:
                    raise LostPlaceError
                is_set[start + index] = 1
                position += num_bits
                index += 1
            elif run == 15:
                index += 16
            else:
                num_empty = _empty_blocks(words, position, run) - 1
                position += run
                break
        if index > last + 1 or not code:
            raise LostPlaceError
    if num_empty or position > size:
        raise LostPlaceError
    return position


def end_of_refinement(
    bits: Bits, table: Table, first: int, last: int, starts: Iterable[int], is_set: bytearray
) -> int:
    """Position behind a scan that adds a bit to the AC coefficients; arguments and errors as `end_of_bands`."""
    words, size, position, num_empty = bits.words, bits.size, 0, 0
    for start in starts:
        index = first
        while not num_empty and index <= last and position < size:
            code = table[words[position >> 3] >> 16 - (position & 7) & 0xFFFF]
            position += code & 0xFF
            run, num_bits = code >> 12, code >> 8 & 15
            if num_bits == 0 and run != 15:
                num_empty = _empty_blocks(words, position, run)
                position += run
                break
            position += num_bits
            while index <= last:
                if is_set[start + index]:
                    position += 1
                elif run:
                    run -= 1
                else:
                    break
                index += 1
            if index > last or num_bits > 1:
                raise LostPlaceError
            is_set[start + index] |= num_bits
            index += 1
        if num_empty:
            num_empty -= 1
            position += is_set.count(1, start + index, start + last + 1) if index <= last else 0
    if num_empty or position > size:
        raise LostPlaceError
    return position


def _empty_blocks(words: Sequence[int], position: int, num_bits: int) -> int:
    """This block and those after it that have no more new coefficients (T.81, G.1.2.2)."""
    if num_bits == 0:
        return 1
    more = (words[position >> 3] << (position & 7) & 0xFFFFFFFF) >> 32 - num_bits
    return (1 << num_bits) + more
