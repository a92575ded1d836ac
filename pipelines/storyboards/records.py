"""Records of videos: what a line or file says of one video's storyboard and subtitles, in four forms.

| form               | recognised by                        | storyboard from             |
|--------------------|--------------------------------------|-----------------------------|
| record             | `spec`                               | `spec`, `id`, `duration` (seconds) |
| player response    | `storyboards` or `playabilityStatus` | `storyboards.….spec`        |
| yt-dlp `info.json` | `formats`                            | the formats `sb0`, `sb1`, … |
| Emu's sheet record | `sb`                                 | `sb`: width, height, columns, rows, frames of each sheet |

Subtitles come from `subtitles` and `automatic_captions` (record, `info.json`), `captions.….captionTracks` (player
response) or `subtitle` (Emu's sheet record).

`subtitles` of a record: a transcript (`[{"text", "start"}, …]`), the text of a file of any format of
`pipelines.subtitles`, or an object of languages, each with one of these or with `{"url": …}` (several in a list, as
yt-dlp writes them).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pipelines.core.pipeline import Reason, Rejected
from pipelines.storyboards.levels import MAX_COUNT, Level, parse_spec, shortened, whole
from schemas import strict_json

RECORD_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "malformed_json": Reason("The record is not JSON."),
        "nested_too_deeply": Reason("The JSON is nested too deeply."),
        "doubled_field": Reason(
            "An object of the record has a field twice, so its value is ambiguous."
        ),
        "not_an_object": Reason("The record is JSON, but not an object."),
        "bad_unicode": Reason(
            "A text or a name contains half of a surrogate pair, which is not a character."
        ),
        "wrong_type": Reason("A field has a value of a wrong type."),
        "no_video_id": Reason(
            "The record has no video id of 1 to 64 characters A-Z, a-z, 0-9, _ and -."
        ),
        "no_storyboard": Reason("The record has no storyboard; the video may be unavailable."),
    }
)
"""Why a record is no video with a storyboard."""

VIDEO_ID = re.compile("[A-Za-z0-9_-]{1,64}")
MAX_DURATION_S = 30 * 86_400
ANY_LANGUAGE = ""
_FORMATS = ("json3", "srv1", "vtt", "srv3")
"""Of yt-dlp's list, in the order in which they are taken."""


@dataclass(frozen=True)
class Track:
    """Subtitles in one language: an address, or their text (of any format) or entries where the record holds them."""

    language: str
    is_automatic: bool
    url: str | None = None
    text: str | None = None
    entries: list[Any] | None = None
    """Of a transcript."""

    @property
    def is_held(self) -> bool:
        """Whether the record holds the subtitles."""
        return self.text is not None or self.entries is not None


@dataclass(frozen=True)
class Video:
    """What is known of one video."""

    id: str
    duration_s: float | None
    levels: list[Level]
    tracks: list[Track]
    problems: list[str]
    """Of levels that could not be read."""


def parse_video(text: str) -> Video:
    """The video that a record describes; raises `Rejected` with a reason of `RECORD_REASONS` or `SPEC_REASONS`."""
    record = _loaded(text)
    if "spec" in record:
        return _of_record(record)
    if "sb" in record:
        return _of_sheets(record)
    if isinstance(record.get("formats"), list):
        return _of_info(record)
    return _of_player_response(record)


def choose_track(tracks: list[Track], language: str) -> Track | None:
    """The subtitles of a language: manual before automatic, `en` before `en-GB`, texts before addresses."""

    def rank(track: Track) -> tuple[Any, ...]:
        name = track.language.lower()
        is_exact = name in (language.lower(), f"{language.lower()}-orig", ANY_LANGUAGE)
        return (track.is_automatic, not is_exact, name, not track.is_held)

    prefix = f"{language.lower()}-"
    wanted = [
        track
        for track in tracks
        if track.language.lower() in (language.lower(), ANY_LANGUAGE)
        or track.language.lower().startswith(prefix)
    ]
    return min(wanted, key=rank, default=None)


def _loaded(text: str) -> dict[str, Any]:
    try:
        record = strict_json.loads(text, tolerated=frozenset({"not_finite"}))
    except strict_json.JsonError as error:
        known = error.reason if error.reason in RECORD_REASONS else "malformed_json"
        raise Rejected(
            known, str(error)[:200].encode("ascii", "backslashreplace").decode()
        ) from None
    if not isinstance(record, dict):
        raise Rejected("not_an_object", f"the record is {type(record).__name__}")
    return record


def _of_record(record: dict[str, Any]) -> Video:
    levels, problems = parse_spec(_text(record, "spec"))
    tracks = [
        *_tracks(record.get("subtitles"), False),
        *_tracks(record.get("automatic_captions"), True),
    ]
    return Video(_id(record.get("id")), _duration(record.get("duration")), levels, tracks, problems)


def _of_player_response(record: dict[str, Any]) -> Video:
    details = _object(record.get("videoDetails"))
    boards = _object(record.get("storyboards"))
    renderers = ("playerStoryboardSpecRenderer", "playerLiveStoryboardSpecRenderer")
    spec = next((s for name in renderers if (s := _object(boards.get(name)).get("spec"))), None)
    if spec is None:
        status = _object(record.get("playabilityStatus")).get("status")
        raise Rejected("no_storyboard", None if status is None else shortened(str(status)))
    if not isinstance(spec, str):
        raise Rejected("wrong_type", "spec is no string")
    levels, problems = parse_spec(spec)
    renderer = _object(_object(record.get("captions")).get("playerCaptionsTracklistRenderer"))
    tracks = [t for entry in _list(renderer.get("captionTracks")) if (t := _caption_track(entry))]
    duration_s = _duration(details.get("lengthSeconds"))
    return Video(_id(details.get("videoId")), duration_s, levels, tracks, problems)


def _caption_track(entry: Any) -> Track | None:
    entry = _object(entry)
    url, language = entry.get("baseUrl"), entry.get("languageCode")
    if not isinstance(url, str) or not isinstance(language, str):
        return None
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "fmt"]
    address = parts._replace(query=urlencode([*query, ("fmt", "json3")])).geturl()
    return Track(language, entry.get("kind") == "asr", url=address)


def _of_info(record: dict[str, Any]) -> Video:
    duration_s = _duration(record.get("duration"))
    boards = [f for f in map(_object, record["formats"]) if _is_storyboard(f)]
    if not boards:
        raise Rejected("no_storyboard", "no format sb0, sb1, ...")
    levels, problems = [], []
    for board in boards:
        name = shortened(str(board.get("format_id")))
        try:
            levels.append(_info_level(board, len(boards), duration_s))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if not levels:
        raise Rejected("spec_malformed", "; ".join(problems)[:400])
    tracks = [
        *_tracks(record.get("subtitles"), False),
        *_tracks(record.get("automatic_captions"), True),
    ]
    return Video(_id(record.get("id")), duration_s, levels, tracks, problems)


def _is_storyboard(entry: Mapping[str, Any]) -> bool:
    return bool(re.fullmatch("sb[0-9]{1,2}", str(entry.get("format_id"))))


def _info_level(board: Mapping[str, Any], num_levels: int, duration_s: float | None) -> Level:
    addresses = [str(_object(f).get("url") or "") for f in _list(board.get("fragments"))]
    if not addresses or not all(addresses):
        raise ValueError("fragments without addresses")
    names = ("width", "height", "columns", "rows")
    sizes = {name: whole(board.get(name), name) for name in names}
    count = _info_count(board, sizes["columns"] * sizes["rows"], duration_s)
    # Their numbers run against those of the levels.
    number = num_levels - 1 - int(str(board["format_id"])[2:])
    named = re.search("_L([0-9]{1,2})/", addresses[0])
    is_overview = "/default." in addresses[0]
    level = Level(
        int(named[1]) if named else number,
        sizes["width"],
        sizes["height"],
        count,
        sizes["columns"],
        sizes["rows"],
        interval_s=0.0 if is_overview else None,
        addresses=tuple(addresses),
    )
    if level.num_sheets != len(addresses):
        raise ValueError(f"{len(addresses)} sheets for {count} frames")
    return level


def _info_count(board: Mapping[str, Any], per_sheet: int, duration_s: float | None) -> int:
    """Frames, from `fps` (count / duration) or from the duration of a full sheet."""
    if duration_s is None:
        raise ValueError("no duration, so the number of frames is not known")
    fps, fragments = board.get("fps"), _list(board.get("fragments"))
    if fps is None and len(fragments) > 1:
        seconds = _number(_object(fragments[0]).get("duration"), "duration of a sheet")
        fps = per_sheet / seconds if seconds else None
    count = round(_number(fps, "fps") * duration_s)
    return whole(count, "count", 1, MAX_COUNT)


def _of_sheets(record: dict[str, Any]) -> Video:
    sheets = _object(record["sb"])
    names = ("width", "height", "columns", "rows", "count")
    key = _id(record.get("key") or record.get("id"))
    try:
        numbers = range(len(sheets))
        lists = [_list(sheets.get(str(m)))[:6] for m in numbers]
        if not lists or any(len(values) < 5 for values in lists):
            raise ValueError("sheets are not numbered from 0, with five numbers each")
        rows = [
            [whole(value, name, 1, MAX_COUNT) for name, value in zip(names, values, strict=False)]
            for values in lists
        ]
        width, height, columns, num_rows, _ = rows[0]
        kind = "jpg" if "jpeg" in str(lists[0][5:]) else "webp"
        level = Level(
            0,
            whole(width // columns, "width"),
            whole(height // num_rows, "height"),
            whole(sum(row[4] for row in rows), "count"),
            whole(columns, "columns"),
            whole(num_rows, "rows"),
            None,
            addresses=tuple(f"{key}_{m}.{kind}" for m in numbers),
        )
        is_full = all(row[4] == columns * num_rows for row in rows[:-1])
        if level.num_sheets != len(rows) or not is_full:
            raise ValueError(f"{len(rows)} sheets for {level.count} frames")
    except ValueError as error:
        raise Rejected("spec_malformed", f"sb: {error}"[:400]) from None
    tracks = list(_tracks(record.get("subtitle"), False))
    return Video(_id(record.get("id")), _duration(record.get("duration")), [level], tracks, [])


def _tracks(value: Any, is_automatic: bool) -> Iterator[Track]:
    """The subtitles that a field holds; whatever is none is left out."""
    if isinstance(value, str | list):
        value = {ANY_LANGUAGE: value}
    for language, entry in _object(value).items():
        track = Track(language, is_automatic)
        if isinstance(entry, str):
            yield replace(track, text=entry)
        elif isinstance(entry, dict):
            yield from _linked(track, [entry])
        elif isinstance(entry, list) and any(isinstance(e, dict) and "url" in e for e in entry):
            yield from _linked(track, entry)
        elif isinstance(entry, list):
            yield replace(track, entries=entry)


def _linked(track: Track, entries: list[Any]) -> Iterator[Track]:
    """The entry of the first format that is read; a translation by machine is none."""
    found = [e for e in map(_object, entries) if isinstance(e.get("url"), str)]
    found = [e for e in found if "tlang=" not in e["url"]]
    order = {name: number for number, name in enumerate(_FORMATS)}
    readable = [e for e in found if "ext" not in e or e["ext"] in order]
    if readable:
        best = min(readable, key=lambda e: order.get(e.get("ext", "vtt"), len(order)))
        yield replace(track, url=best["url"])


def _id(value: Any) -> str:
    if not isinstance(value, str) or not VIDEO_ID.fullmatch(value):
        raise Rejected("no_video_id", None if value is None else shortened(str(value)))
    return value


def _duration(value: Any) -> float | None:
    """Seconds; also of digits, as a player response has them. None where there is none."""
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        value = int(value)
    try:
        found = _number(value, "duration")
    except ValueError as error:
        raise Rejected("wrong_type", str(error)) from None
    return found or None  # live streams have 0


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {shortened(str(value))}, no number")
    if not 0 <= value <= MAX_DURATION_S:  # false for NaN
        raise ValueError(f"{name} is {shortened(str(value))}, not in 0..{MAX_DURATION_S}")
    return float(value)


def _text(record: dict[str, Any], name: str) -> str:
    if not isinstance(record[name], str):
        raise Rejected("wrong_type", f"{name} is no string")
    return record[name]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
