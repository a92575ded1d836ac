"""Subtitles of every format become cues; what scrolls is read once, what cannot be read says why."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.subtitles import FORMATS, read_subtitles
from pipelines.subtitles.cues import SUBTITLE_REASONS
from pipelines.subtitles.transcript import from_entries

Cues = list[tuple[float, str]]


def cues(data: str | bytes) -> Cues:
    found = read_subtitles(data.encode() if isinstance(data, str) else data)
    return [(cue.start_s, cue.text) for cue in found.cues]


def reason(data: str | bytes) -> str:
    with pytest.raises(Rejected) as caught:
        cues(data)
    assert caught.value.reason in SUBTITLE_REASONS
    return caught.value.reason


EXAMPLES = {
    "webvtt": "WEBVTT\n\n00:01.500 --> 00:03.000\nI'm <i>here</i> &amp; there\n",
    "timedtext": '<transcript><text start="1.5">I&amp;#39;m &lt;i&gt;here&lt;/i&gt; &amp;amp; '
    "there</text></transcript>",
    "json3": json.dumps(
        {
            "wireMagic": "pb3",
            "events": [
                {"id": 1, "wpWinPosId": 1},
                {
                    "tStartMs": 1500,
                    "dDurationMs": 6801,
                    "segs": [{"utf8": "I'm here"}, {"utf8": " & there", "tOffsetMs": 201}],
                },
                {"tStartMs": 2000, "aAppend": 1, "segs": [{"utf8": "\n"}]},
            ],
        }
    ),
    "transcript": json.dumps([{"text": "I&#39;m here\n& there", "start": 1.5, "duration": 4.16}]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_cues(name: str) -> None:
    assert cues(EXAMPLES[name]) == [(1.5, "I'm here & there")]
    assert cues(b"\xef\xbb\xbf" + EXAMPLES[name].encode()) == [(1.5, "I'm here & there")]


def test_srv3_has_milliseconds_and_words() -> None:
    body = '<p t="1500" d="10"><s>two</s><s t="100"> words</s></p><p t="x">no time</p>'
    found = read_subtitles(f'<timedtext format="3"><body>{body}</body></timedtext>'.encode())
    assert [(c.start_s, c.text) for c in found.cues] == [(1.5, "two words")]
    assert found.num_unreadable == 1


def test_cues_are_in_order_and_equal_starts_keep_theirs() -> None:
    entries = [{"text": t, "start": s} for t, s in (("c", 9), ("a", 1), ("b", 1), (" ", 0))]
    assert cues(json.dumps(entries)) == [(1.0, "a"), (1.0, "b"), (9.0, "c")]


def test_real_subtitles(sample_data: Path) -> None:
    folder = sample_data / "subtitles"
    assert cues((folder / "youtube_dl.vtt").read_bytes()) == [
        (286.07, "yeah"),
        (286.47, "what"),
        (304.08, "this will happen is I'm telling"),
    ]
    assert len(cues((folder / "sample.vtt").read_bytes())) == 16
    assert cues((folder / "captions_with_bom.vtt").read_bytes())[-1] == (16.32, "Caption text #4")
    assert len(cues((folder / "missing_caption_text.vtt").read_bytes())) == 4
    broken = read_subtitles((folder / "invalid_timeframe.vtt").read_bytes())
    assert len(broken.cues) == 6 and broken.num_unreadable == 1
    assert cues((folder / "transcript.xml").read_bytes()) == [
        (0.0, "Hey, this is just a test"),
        (1.54, "this is not the original transcript"),
        (5.7, "just something shorter, I made up for testing"),
    ]


def test_the_lists_of_video2dataset(sample_data: Path) -> None:
    record = json.loads((sample_data / "videos/0000008_00001.json").read_text())
    entries = record["yt_meta_dict"]["subtitles"]
    found = read_subtitles(json.dumps(entries).encode())
    assert len(found.cues) == len(entries) and found.num_unreadable == 0
    assert (found.cues[1].start_s, found.cues[1].text) == (
        2.629,
        "you know after I let me stab you mr.",
    )
    broken = [entries[0], entries[1] | {"start": "1:2"}, entries[1] | {"lines": [7]}, {"lines": []}]
    assert read_subtitles(json.dumps(broken).encode()).num_unreadable == 3


def rolling(lines: list[str], has_word_times: bool) -> str:
    """Automatic captions as YouTube writes them: two lines, and 10 ms in which only the second stays."""
    written, above = ["WEBVTT\nKind: captions\nLanguage: en\n"], " "
    for number, line in enumerate(lines):
        start, later = f"00:{number:02d}:00.000", f"00:{number:02d}:02.000"
        timed = f"{line}<{later}><c> </c>" if has_word_times else line
        written.append(f"{start} --> {later} align:start position:0%\n{above}\n{timed}\n")
        written.append(f"{later} --> 00:{number:02d}:02.010\n{line}\n \n")
        above = line
    return "\n".join(written)


LINES = st.lists(st.text("ab cd", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=9)


@given(LINES)
def test_lines_that_scroll_are_read_once(lines: list[str]) -> None:
    expected = [(60.0 * n, " ".join(line.split())) for n, line in enumerate(lines)]
    assert cues(rolling(lines, has_word_times=True)) == expected


def test_lines_that_scroll_without_times_of_words_are_read_once() -> None:
    found = cues(rolling(["one", "two", "three", "four", "five"], has_word_times=False))
    assert [text for _, text in found] == ["one", "two", "three", "four", "five"]


def test_what_is_said_twice_stays_twice() -> None:
    said = "".join(f"\n00:0{n}.000 --> 00:0{n}.900\nNo.\n" for n in range(3))
    assert [text for _, text in cues("WEBVTT\n" + said)] == ["No.", "No.", "No."]


def test_entities_that_expand_are_never_parsed() -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE transcript [<!ENTITY e0 "ha">{entities}]>'
    bomb += '<transcript><text start="0">&e9;</text></transcript>'
    assert reason(bomb) == "subtitles_with_entities"
    external = '<!DOCTYPE t SYSTEM "file:///etc/passwd"><transcript/>'
    assert reason(external) == "subtitles_with_entities"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xff\xfe", "subtitles_not_utf8"),
        ("", "subtitles_unknown_format"),
        ("once upon a time", "subtitles_unknown_format"),
        ("<html><body>Sorry</body></html>", "subtitles_malformed"),
        ("<transcript><text>", "subtitles_malformed"),
        ('{"events": 3}', "subtitles_malformed"),
        ('{"error": 404}', "subtitles_malformed"),
        ("{", "subtitles_malformed"),
        ('[{"text": 1}]', "subtitles_malformed"),
        ('{"events": [{"tStartMs": "a", "segs": [{"utf8": "x"}]}]}', "subtitles_malformed"),
        ('<transcript><text start="NaN">x</text></transcript>', "subtitles_malformed"),
        ('[{"text": "x", "start": NaN}]', "subtitles_malformed"),
        ("[" * 100_000, "subtitles_malformed"),
    ],
)
def test_what_cannot_be_read_says_why(data: str | bytes, word: str) -> None:
    assert reason(data) == word


@given(
    st.sampled_from(["WEBVTT\n\n", "<transcript>", '{"events": ', "[", ""]), st.text() | st.binary()
)
def test_rubbish_is_cues_or_a_reason(start: str, rest: str | bytes) -> None:
    data = start.encode() + (rest if isinstance(rest, bytes) else rest.encode("utf-8", "replace"))
    try:
        assert all(start_s >= 0 and text.strip() == text != "" for start_s, text in cues(data))
    except Rejected as error:
        assert error.reason in SUBTITLE_REASONS


words = st.text("ab \n\t\u00a0\x0b<&é", max_size=6)
starts = st.sampled_from([0.0, 1.0, 2.5, 7.0, 3, -1.0, float("nan")])
entries = st.fixed_dictionaries({"text": words, "start": starts})


@given(st.lists(entries, min_size=1, max_size=4))
def test_entries_that_are_read_by_column_give_what_each_alone_gives(found: list[dict]) -> None:
    """A field that only the slow way knows makes the same entries take it."""
    odd = {"lines": ["the last"], "start": 9.0}
    try:
        by_column = from_entries(found)
    except Rejected:
        return
    one_by_one = from_entries([*found, odd])
    assert by_column.cues == one_by_one.cues[:-1]
    assert by_column.num_unreadable == one_by_one.num_unreadable
