"""Specifications of storyboards: levels, addresses, frames of a sheet, times."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.storyboards.levels import (
    INTERVALS_S,
    SPEC_REASONS,
    Level,
    choose_level,
    parse_spec,
    recovered_interval,
    timing,
)

HOST = "https://i.ytimg.example/sb/x/storyboard3_L$L/$N.jpg"
REAL = [(930, 95, 10), (283, 143, 2), (316, 65, 5), (464, 94, 5), (1509, 152, 10)]
"""Duration, count and interval of real videos."""


def level(count: int = 94, interval_s: float | None = 5.0) -> Level:
    return Level(1, 107, 45, count, 10, 10, interval_s)


def test_the_real_specification(sample_data: Path) -> None:
    spec = (sample_data / "storyboard/WhWc3b3KhnY.spec.txt").read_text()
    levels, problems = parse_spec(spec)
    assert not problems
    assert [(v.width, v.height, v.count, v.columns, v.rows, v.interval_s) for v in levels] == [
        (48, 27, 100, 10, 10, 0.0),
        (107, 45, 94, 10, 10, 5.0),
        (214, 90, 94, 5, 5, 5.0),
    ]
    assert [v.num_sheets for v in levels] == [1, 1, 4]
    first, last = levels[0].sheet_addresses[0], levels[2].sheet_addresses[-1]
    start = "https://i.ytimg.com/sb/WhWc3b3KhnY/storyboard3_L"
    assert first.startswith(f"{start}0/default.jpg?sqp=")
    assert first.endswith("==&sigh=rs$AOn4CLAoA29JSVidCl3Ap1PWwJgzEWV2dQ")
    assert last.startswith(f"{start}2/M3.jpg?sqp=")
    assert choose_level(levels, None).number == 2 and choose_level(levels, 0).width == 48
    with pytest.raises(Rejected) as caught:
        choose_level(levels, 3)
    assert caught.value.reason == "level_missing"


def test_entries_of_seven_fields_and_what_is_in_a_signature() -> None:
    levels, problems = parse_spec(
        f"{HOST}|72#54#100#10#10#0#storyboard_high|8#8#9#2#2#1000#M$M#a$M"
    )
    assert not problems
    assert levels[0].sheet_addresses == (
        "https://i.ytimg.example/sb/x/storyboard3_L0/storyboard_high.jpg",
    )
    assert levels[1].sheet_addresses[2].endswith("_L1/M2.jpg?sigh=a$M"), "a signature is no place"
    assert parse_spec("//h.example/$N?a|8#8#1#1#1#0#n#s")[0][0].sheet_addresses == (
        "https://h.example/n?a&sigh=s",
    )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("48#27#100#10#10#0", "6 fields"),
        ("48#27#100#10#10#0#n#s#x", "9 fields"),
        ("48#27#0#10#10#0#n#s", "count is 0"),
        ("-48#27#1#10#10#0#n#s", "width is '-48'"),
        ("48#27#100#1_0#10#0#n#s", "columns is '1_0'"),
        ("48#27#100000#1#1#0#M$M#s", "more than 1000"),
        ("48#27#101#10#10#1000#default#s", "one address for 2 sheets"),
        ("48#27#١٢#10#10#0#n#s", "count is"),
    ],
)
def test_an_entry_that_is_none_costs_its_level_alone(entry: str, words: str) -> None:
    good = "8#8#1#1#1#0#n#s"
    levels, problems = parse_spec(f"{HOST}|{entry}|{good}")
    assert [v.number for v in levels] == [1] and words in problems[0]
    with pytest.raises(Rejected) as caught:
        parse_spec(f"{HOST}|{entry}")
    assert caught.value.reason == "spec_malformed" and words in (caught.value.detail or "")


def test_live_streams_do_not_say_when() -> None:
    with pytest.raises(Rejected) as caught:
        parse_spec("https://i.ytimg.example/sb/x/storyboard_live_90_2x2_b2/M$M.jpg?rs=A#159#90#2#2")
    assert caught.value.reason == "live_storyboard"


@given(st.integers(1, 500), st.integers(1, 12), st.integers(1, 12))
def test_the_frames_of_the_sheets_are_all_frames_once(count: int, columns: int, rows: int) -> None:
    grid = Level(0, 8, 8, count, columns, rows, 1.0)
    numbers = [k for m in range(grid.num_sheets) for k in grid.frames_of(m)]
    assert numbers == list(range(count)) and all(
        len(grid.frames_of(m)) for m in range(grid.num_sheets)
    )


@pytest.mark.parametrize(("duration", "count", "interval"), REAL)
def test_the_last_frame_is_where_the_interval_says(
    duration: int, count: int, interval: int
) -> None:
    last = (count - 1) * interval
    for known in (float(interval), None):
        times = timing(level(count, known), float(duration))
        assert abs((count - 1) * times.interval_s - last) <= interval / 2
        assert times.source == ("given" if known else "recovered")
    by_count = (count - 1) * duration / count
    assert last - by_count > interval, "what is made of duration / count drifts"


@given(st.sampled_from(INTERVALS_S), st.floats(60, 100_000))
def test_the_interval_of_a_count_is_found(interval: float, duration: float) -> None:
    assert recovered_interval(int(duration // interval) + 2, duration) == interval


def test_times_that_are_not_known_are_named() -> None:
    assert recovered_interval(100, 1509) is None and recovered_interval(2, 0.5) is None
    assert timing(level(100, None), 1509.0).source == "count"
    overview = timing(level(100, 0.0), 464.0)
    assert (overview.interval_s, overview.source) == (4.64, "uniform")
    released = timing(level(), 464.0, is_released=True)
    assert (released.interval_s, released.source) == (5.0, "released")
    assert timing(level(95, 10.0), 930.0, is_released=True).interval_s == 10.0
    assert timing(level(143, 2.0), 283.0, is_released=True).interval_s == 2.0
    with pytest.raises(Rejected) as caught:
        timing(level(100, 0.0), None)
    assert caught.value.reason == "duration_missing" in SPEC_REASONS
    assert timing(level(), None).interval_s == 5.0
