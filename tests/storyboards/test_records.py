"""Records of videos: what is accepted, what is chosen, what is refused."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.storyboards.levels import SPEC_REASONS
from pipelines.storyboards.records import RECORD_REASONS, choose_track, parse_video

SPEC = "https://h.example/L$L/$N.jpg?a=1|8#8#9#2#2#1000#M$M#s"
LINE = {"id": "a_B-9", "spec": SPEC, "duration": 7.5}


def parse(**values: Any) -> Any:
    return parse_video(json.dumps(LINE | values))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "malformed_json"),
        ('{"id": 1} x', "malformed_json"),
        ("[" * 100_000, "nested_too_deeply"),
        ('{"id": "a", "id": "b", "spec": ""}', "doubled_field"),
        ('["a"]', "not_an_object"),
        ("{}", "no_storyboard"),
        ('{"playabilityStatus": {"status": "LOGIN_REQUIRED"}}', "no_storyboard"),
        ('{"id": "a", "formats": [{"format_id": "18"}]}', "no_storyboard"),
        (json.dumps(LINE | {"id": "../../etc"}), "no_video_id"),
        (json.dumps(LINE | {"id": None}), "no_video_id"),
        (json.dumps(LINE | {"id": "a" * 65}), "no_video_id"),
        (json.dumps(LINE | {"spec": 7}), "wrong_type"),
        (json.dumps(LINE | {"duration": "long"}), "wrong_type"),
        (json.dumps(LINE | {"duration": -1}), "wrong_type"),
        (json.dumps(LINE | {"duration": 1e300}), "wrong_type"),
        ('{"id": "\\ud800", "spec": ""}', "bad_unicode"),
        (json.dumps(LINE | {"spec": ""}), "spec_malformed"),
        ('{"id": "a", "sb": {"0": [10, 10, 1, 1]}}', "spec_malformed"),
        ('{"id": "a", "sb": {"1": [10, 10, 1, 1, 1, "x"]}}', "spec_malformed"),
        ('{"id": "a", "sb": {"0": [10, 10, 2, 2, 9, "x"]}}', "spec_malformed"),
        (
            '{"id": "a", "sb": {"0": [10, 10, 2, 2, 3, "x"], "1": [10, 10, 2, 2, 3, "x"]}}',
            "spec_malformed",
        ),
        (
            '{"id": "a", "duration": 9, "formats": [{"format_id": "sb0", "fragments": []}]}',
            "spec_malformed",
        ),
    ],
)
def test_what_is_no_video_says_why(text: str, word: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_video(text)
    assert caught.value.reason == word and word in {*RECORD_REASONS, *SPEC_REASONS}


def test_a_record_and_its_live_durations() -> None:
    assert parse().duration_s == 7.5 and parse(duration="12").duration_s == 12.0
    assert parse(duration=0).duration_s is None and parse(duration=None).duration_s is None


def test_manual_subtitles_come_before_automatic_ones() -> None:
    link = [
        {"url": "http://s.example/a", "ext": "vtt"},
        {"url": "http://s.example/b", "ext": "json3"},
    ]
    translated = [{"url": "http://s.example/c?tlang=en", "ext": "json3"}]
    video = parse(
        subtitles={"en-GB": link, "de": [{"text": "x", "start": 1}]},
        automatic_captions={"en": link, "en-orig": link, "fr": translated},
    )
    chosen = choose_track(video.tracks, "en")
    assert chosen is not None
    assert (chosen.language, chosen.is_automatic, chosen.url) == (
        "en-GB",
        False,
        "http://s.example/b",
    )
    german, french = choose_track(video.tracks, "de"), choose_track(video.tracks, "fr")
    assert german is not None and german.entries == [{"text": "x", "start": 1}]
    assert french is None, "a translation by machine is no transcript"
    assert choose_track(parse(automatic_captions={"en": "WEBVTT"}).tracks, "EN").is_automatic  # type: ignore[union-attr]


def test_subtitles_without_a_language_are_of_any() -> None:
    entries = [{"text": "x", "start": 1}]
    for value in (entries, "WEBVTT\n", {"en": {"url": "http://s.example/a"}}):
        assert choose_track(parse(subtitles=value).tracks, "en") is not None
    for value in (None, 7, {}, {"en": 7}, {"en": [{"url": "x", "ext": "ttml"}]}):
        assert choose_track(parse(subtitles=value).tracks, "en") is None


def test_older_formats_of_ytdlp_say_how_long_a_sheet_is() -> None:
    board = {"format_id": "sb0", "width": 8, "height": 8, "columns": 2, "rows": 2}
    fragments = [
        {"url": f"http://s.example/storyboard3_L2/M{m}.jpg", "duration": d}
        for m, d in enumerate((4, 4, 1))
    ]
    info = {"id": "a", "duration": 9, "formats": [board | {"fragments": fragments}]}
    (level,) = parse_video(json.dumps(info)).levels
    assert (level.number, level.count, level.num_sheets, level.interval_s) == (2, 9, 3, None)
    broken = info | {
        "formats": [board | {"fragments": fragments[:1]}, board | {"fragments": fragments}]
    }
    assert len(parse_video(json.dumps(broken)).problems) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
BOARD = {
    "format_id": "sb0",
    "width": 8,
    "height": 8,
    "columns": 2,
    "rows": 2,
    "fps": 1.0,
    "fragments": [{"url": f"http://s.example/M{m}.jpg", "duration": 4} for m in range(3)],
}
TRACKS = {"captionTracks": [{"baseUrl": "http://s.example/t?fmt=srv3", "languageCode": "en"}]}
FORMS: list[dict[str, Any]] = [
    LINE | {"subtitles": {"en": [{"text": "x", "start": 1}]}, "automatic_captions": {}},
    {
        "videoDetails": {"videoId": "a", "lengthSeconds": "9"},
        "storyboards": {"playerStoryboardSpecRenderer": {"spec": SPEC}},
        "captions": {"playerCaptionsTracklistRenderer": TRACKS},
    },
    {"id": "a", "duration": 9, "formats": [BOARD], "subtitles": {"en": [{"url": "x"}]}},
    {"id": "a", "key": "k", "duration": 9, "sb": {"0": [16, 16, 2, 2, 4, "x"]}, "subtitle": []},
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value with each of its names or positions."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place for name, one in inside for place in ((value, name), *places(one))]


@given(st.data(), st.sampled_from(FORMS), JSON)
def test_any_value_anywhere_is_a_video_or_a_reason(
    data: st.DataObject, form: Any, value: Any
) -> None:
    record = copy.deepcopy(form)
    container, name = data.draw(st.sampled_from(places(record)))
    if isinstance(container, dict) and data.draw(st.booleans()):
        container[data.draw(st.sampled_from(["01", "²", ""]))] = container.pop(name)
    else:
        container[name] = value
    try:
        video = parse_video(json.dumps(record))
    except Rejected as error:
        assert error.reason in {*RECORD_REASONS, *SPEC_REASONS}
        (error.detail or "").encode("ascii")
        return
    addresses = [url for level in video.levels for url in level.sheet_addresses]
    texts = [t.text or t.url or "" for t in video.tracks]
    assert video.levels and all(
        text.encode() is not None for text in [*addresses, *texts, video.id]
    )
    choose_track(video.tracks, "en")
