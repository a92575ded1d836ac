"""Timeline: frames and subtitles in one order, cut into parts of bounded length.

Frames and subtitles are merged by time; where both begin together the frame comes first. The subtitles between two
frames become one text, joined by spaces, whose time is that of the first. A part is cut between blocks only: a frame is
one block of 34 positions (`[IMG]`, 32 embeddings, `[/IMG]`), and a text one block; only a text that is longer than a
whole part is cut itself, between its subtitles, or between words. No frame and no word is lost.

Source: the released tools of Emu (storyboards), whose order this is.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

FRAME_POSITIONS = 34
SEQUENCE_POSITIONS = 2
"""Of the tokens that begin and end every sequence."""
MIN_POSITIONS = FRAME_POSITIONS + SEQUENCE_POSITIONS

Count = Callable[[str], int]
"""The number of positions that a text takes."""
Cue = tuple[float, str]
"""Start in seconds, and text."""


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
    cues: tuple[Cue, ...] = ()

    @property
    def text(self) -> str:
        """The subtitles, joined by spaces."""
        return " ".join(text for _, text in self.cues)


def merged(frames: Sequence[tuple[float, int]], cues: Sequence[Cue]) -> list[Block]:
    """Frames (time, number) and subtitles as blocks in time order."""
    entries = [(time_s, 0, frame) for time_s, frame in frames]
    entries += [(start_s, 1, number) for number, (start_s, _) in enumerate(cues)]
    blocks: list[Block] = []
    pending: list[Cue] = []
    for time_s, kind, number in sorted(entries):
        if kind == 1:
            pending.append(cues[number])
            continue
        blocks += _texts(pending)
        pending = []
        blocks.append(Block(time_s, frame=number))
    return blocks + _texts(pending)


def _texts(cues: list[Cue]) -> list[Block]:
    return [Block(cues[0][0], cues=tuple(cues))] if cues else []


class Part(NamedTuple):
    """The blocks of one sequence, and the positions that it takes."""

    blocks: tuple[Block, ...]
    num_positions: int


def parts(blocks: Iterable[Block], max_positions: int, count: Count) -> Iterator[Part]:
    """The blocks cut into parts of at most `max_positions`, each as long as whole blocks allow."""
    assert max_positions >= MIN_POSITIONS, max_positions
    room = max_positions - SEQUENCE_POSITIONS
    held: list[Block] = []
    num_held = 0
    for block, size in _sized(blocks, room, count):
        if held and num_held + size > room:
            yield Part(tuple(held), num_held + SEQUENCE_POSITIONS)
            held, num_held = [], 0
        held.append(block)
        num_held += size
    if held:
        yield Part(tuple(held), num_held + SEQUENCE_POSITIONS)


def _sized(blocks: Iterable[Block], room: int, count: Count) -> Iterator[tuple[Block, int]]:
    """The blocks, or pieces of their texts that fit, each with its positions."""
    for block in blocks:
        if block.frame is not None:
            yield block, FRAME_POSITIONS
        else:
            yield from _fitting(block, room, count)


def _fitting(block: Block, room: int, count: Count) -> Iterator[tuple[Block, int]]:
    size = count(block.text)
    # One character may have more tokens than a sequence has positions.
    halves = _halves(block.cues) if size > room else None
    if halves is None:
        yield block, size
        return
    for cues in halves:
        yield from _fitting(Block(cues[0][0], cues=cues), room, count)


def _halves(cues: tuple[Cue, ...]) -> tuple[tuple[Cue, ...], tuple[Cue, ...]] | None:
    if len(cues) != 1:
        middle = len(cues) // 2
        return cues[:middle], cues[middle:]
    start_s, text = cues[0]
    if len(text) < 2:
        return None
    middle = math.ceil(len(text) / 2)
    space = text.rfind(" ", 1, middle)
    before, after = (
        (text[:space], text[space + 1 :]) if space > 0 else (text[:middle], text[middle:])
    )
    return ((start_s, before.strip()),), ((start_s, after.strip()),)
