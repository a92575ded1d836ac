"""Timeline: frames and subtitles in one order, cut into parts of bounded length.

Frames and subtitles are merged by time; where both begin together the frame comes first. The subtitles between two
frames become one text, joined by spaces, whose time is that of the first. A part is cut between blocks only: a frame is
one block of 34 positions (`[IMG]`, 32 embeddings, `[/IMG]`), and a text one block; only a text that is longer than a
whole part is cut itself, between its subtitles, or between words. No frame and no word is lost.

Source: the released tools of Emu (storyboards), whose order this is.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

FRAME_POSITIONS = 34
SEQUENCE_POSITIONS = 2
"""Of the tokens that begin and end every sequence."""
MIN_POSITIONS = FRAME_POSITIONS + SEQUENCE_POSITIONS

Count = Callable[[str], int]
"""The number of positions that a text takes."""


def estimated_positions(text: str) -> int:
    """Tokens of a text, without a tokenizer: rather too many than too few.

    English subtitles take about 4 characters per token of LLaMA; 3 are counted. A byte outside ASCII counts as a token,
    as many a tokenizer falls back on bytes.
    """
    if text.isascii():
        return max(1, -(-len(text) // 3))
    num_bytes, num_ascii = len(text.encode()), len(text.encode("ascii", "ignore"))
    return max(1, -(-num_ascii // 3) + num_bytes - num_ascii)


class Block(NamedTuple):
    """A frame, by its number, or the subtitles between two frames."""

    time_s: float
    frame: int | None = None
    text: str = ""
    """The subtitles, joined by spaces."""
    starts_s: Sequence[float] = ()
    """Of each of the subtitles, in order."""
    lengths: Sequence[int] = ()
    """Characters of each of them."""


def subtitle_block(starts_s: Sequence[float], texts: Sequence[str]) -> Block:
    """The block of subtitles, at least one."""
    return Block(starts_s[0], None, " ".join(texts), starts_s, list(map(len, texts)))


def merged(
    frames: Iterable[tuple[float, int]], starts_s: Sequence[float], texts: Sequence[str]
) -> list[Block]:
    """Frames and subtitles as blocks in time order.

    Args:
        frames: time and number of each, in order.
        starts_s: of the subtitles, in order.
        texts: of the subtitles.
    """
    blocks: list[Block] = []
    first = 0
    for time_s, number in frames:
        last = bisect_left(starts_s, time_s, first)
        if last > first:
            blocks.append(subtitle_block(starts_s[first:last], texts[first:last]))
            first = last
        blocks.append(Block(time_s, number))
    if first < len(texts):
        blocks.append(subtitle_block(starts_s[first:], texts[first:]))
    return blocks


class Part(NamedTuple):
    """The blocks of one sequence, and the positions that it takes."""

    blocks: Sequence[Block]
    num_positions: int

    @property
    def frames(self) -> list[int]:
        """The numbers of its frames, in order."""
        return [block.frame for block in self.blocks if block.frame is not None]


def parts(blocks: Iterable[Block], max_positions: int, count: Count) -> Iterator[Part]:
    """The blocks cut into parts of at most `max_positions`, each as long as whole blocks allow."""
    assert max_positions >= MIN_POSITIONS, max_positions
    room = max_positions - SEQUENCE_POSITIONS
    held: list[Block] = []
    num_held = 0
    for block, size in _sized(blocks, room, count):
        if held and num_held + size > room:
            yield Part(held, num_held + SEQUENCE_POSITIONS)
            held, num_held = [], 0
        held.append(block)
        num_held += size
    if held:
        yield Part(held, num_held + SEQUENCE_POSITIONS)


def _sized(blocks: Iterable[Block], room: int, count: Count) -> Iterator[tuple[Block, int]]:
    """The blocks, or pieces of their texts that fit, each with its positions."""
    for block in blocks:
        if block.frame is not None:
            yield block, FRAME_POSITIONS
        elif (size := count(block.text)) <= room:
            yield block, size
        else:
            yield from _pieces(block, room, count)


def _pieces(block: Block, room: int, count: Count) -> Iterator[tuple[Block, int]]:
    """The two halves of a text that does not fit, or pieces of them."""
    halves = _halves(block)
    if halves is None:
        # One character may have more tokens than a sequence has positions.
        yield block, count(block.text)
        return
    yield from _sized(halves, room, count)


def _halves(block: Block) -> tuple[Block, Block] | None:
    starts_s, texts = block.starts_s, cues_of(block.text, block.lengths)
    if len(texts) != 1:
        middle = len(texts) // 2
        return (
            subtitle_block(starts_s[:middle], texts[:middle]),
            subtitle_block(starts_s[middle:], texts[middle:]),
        )
    (text,) = texts
    if len(text) < 2:
        return None
    middle = math.ceil(len(text) / 2)
    space = text.rfind(" ", 1, middle)
    before, after = (
        (text[:space], text[space + 1 :]) if space > 0 else (text[:middle], text[middle:])
    )
    return subtitle_block(starts_s, (before.strip(),)), subtitle_block(starts_s, (after.strip(),))


def cues_of(text: str, lengths: Iterable[int]) -> list[str]:
    """The subtitles of a block, as they were before they were joined.

    Args:
        text: of the block.
        lengths: characters of each of the subtitles.
    """
    texts, position = [], 0
    for length in lengths:
        texts.append(text[position : position + length])
        position += length + 1
    return texts
