"""Frames and subtitles in one order, cut without loss."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.storyboards.timeline import (
    FRAME_POSITIONS,
    MIN_POSITIONS,
    Block,
    cues_of,
    estimated_positions,
    parts,
    subtitle_block,
)
from pipelines.storyboards.timeline import merged as merged_columns

FRAMES = st.lists(st.integers(0, 40), max_size=12).map(
    lambda times: [(float(t), n) for n, t in enumerate(sorted(times))]
)
WORDS = st.text("abc é", min_size=1, max_size=300).map(lambda s: " ".join(s.split())).filter(bool)
CUES = st.lists(st.tuples(st.integers(0, 40).map(float), WORDS), max_size=12).map(
    lambda found: sorted(found, key=lambda cue: cue[0])
)


Cue = tuple[float, str]


def merged(frames: list[tuple[float, int]], cues: list[Cue]) -> list[Block]:
    return merged_columns(frames, [start_s for start_s, _ in cues], [text for _, text in cues])


def cues_in(block: Block) -> list[Cue]:
    return list(zip(block.starts_s, cues_of(block.text, block.lengths), strict=True))


def test_a_frame_wins_ties_and_subtitles_between_frames_are_joined() -> None:
    cues = [(0.0, "a"), (4.0, "b"), (5.0, "c"), (11.0, "d"), (12.0, "e")]
    found = merged([(0.0, 0), (5.0, 1), (10.0, 2)], cues)
    assert [(b.time_s, b.frame if b.frame is not None else b.text) for b in found] == [
        (0.0, 0),
        (0.0, "a b"),
        (5.0, 1),
        (5.0, "c"),
        (10.0, 2),
        (11.0, "d e"),
    ]
    (alone,) = merged([], [(1.0, "x"), (2.0, "y")])
    assert (alone.time_s, alone.text, cues_in(alone)) == (1.0, "x y", [(1.0, "x"), (2.0, "y")])


@given(FRAMES, CUES)
def test_merging_keeps_everything_in_order(frames: list, cues: list) -> None:
    found = merged(frames, cues)
    assert [b.frame for b in found if b.frame is not None] == [n for _, n in frames]
    assert [cue for b in found for cue in cues_in(b)] == cues
    assert all(a.time_s <= b.time_s for a, b in pairwise(found))
    assert not any(a.frame is None and b.frame is None for a, b in pairwise(found))


@given(FRAMES, CUES, st.integers(MIN_POSITIONS, 200))
def test_parts_are_bounded_and_lose_nothing(frames: list, cues: list, most: int) -> None:
    blocks = merged(frames, cues)
    found = list(parts(blocks, most, estimated_positions))
    assert all(part.num_positions <= most and part.blocks for part in found)
    for part in found:
        sizes = [
            FRAME_POSITIONS if b.frame is not None else estimated_positions(b.text)
            for b in part.blocks
        ]
        assert part.num_positions == sum(sizes) + 2
    pieces = [b for part in found for b in part.blocks]
    assert [b.frame for b in pieces if b.frame is not None] == [n for _, n in frames]
    letters = "".join(b.text for b in pieces if b.frame is None).replace(" ", "")
    assert letters == "".join(text for _, text in cues).replace(" ", "")
    assert all(a.time_s <= b.time_s for a, b in pairwise(pieces))


@given(FRAMES, CUES)
def test_one_part_where_all_fits(frames: list, cues: list) -> None:
    blocks = merged(frames, cues)
    found = list(parts(blocks, 1_000_000, estimated_positions))
    assert [part.blocks for part in found] == ([blocks] if blocks else [])
    assert [part.frames for part in found] == ([[n for _, n in frames]] if blocks else [])


def test_a_long_text_is_cut_between_subtitles_then_words() -> None:
    cues = [(float(n), f"word{n} " * 8 + "end") for n in range(4)]
    found = list(parts(merged([], cues), 60, estimated_positions))
    assert [len(cues_in(b)) for part in found for b in part.blocks] == [2, 2] or len(found) > 2
    (text,) = {
        b.text
        for part in parts([subtitle_block([0.0], ["x" * 90])], 62, len)
        for b in part.blocks[:1]
    } - {"x" * 30}
    assert set(text) == {"x"}


def test_the_estimate_is_rather_high() -> None:
    assert estimated_positions("Hey, this is just a test") == 8  # LLaMA: 7
    assert estimated_positions("é") == 2 and estimated_positions("日本") == 6
