"""Transcripts of youtube-transcript-api, which Emu's tools store.

Such as `[{"text": "…", "start": 1.54, "duration": 4.16}]`, times in seconds. The lists of video2dataset are read too:
`[{"start": "00:00:01.540", "end": "00:00:05.700", "lines": ["…"]}]`.
"""

import math
import re
from itertools import repeat
from operator import contains, itemgetter
from typing import Any

from pipelines.core.pipeline import Rejected
from pipelines.subtitles.cues import Subtitles, plain, seconds, subtitles, subtitles_of
from schemas import strict_json

_TIME = re.compile("([0-9]{2,4}):([0-9]{2}):([0-9]{2})[.]([0-9]{3})")


def is_transcript(text: str) -> bool:
    """True for a text that begins as a JSON list does."""
    return text.startswith("[")


def parse_transcript(text: str) -> Subtitles:
    """The subtitles of a transcript in JSON; raises `Rejected`."""
    try:
        return from_entries(strict_json.loads(text))
    except strict_json.JsonError as error:
        raise Rejected("subtitles_malformed", f"transcript: {error}") from None


def from_entries(entries: list[Any]) -> Subtitles:
    """The subtitles of the entries of a transcript; raises `Rejected` where none can be read."""
    if (found := _plain_entries(entries)) is not None:
        return found
    cues = [cue for cue in map(_cue, entries) if cue is not None]
    return subtitles(cues, len(entries) - len(cues))


def _plain_entries(entries: list[Any]) -> Subtitles | None:
    """The same by column, where every entry has a text without markup and a start, as in nearly all transcripts."""
    if set(map(type, entries)) != {dict} or any(map(contains, entries, repeat("lines"))):
        return None
    try:
        starts, texts = (list(map(itemgetter(name), entries)) for name in ("start", "text"))
    except KeyError:
        return None
    if set(map(type, starts)) != {float} or set(map(type, texts)) != {str}:
        return None
    joined = "".join(texts)
    is_finite = min(starts) >= 0 and math.isfinite(sum(starts))
    if not is_finite or "&" in joined or "<" in joined:
        return None
    return subtitles_of(starts, texts)


def _cue(entry: Any) -> tuple[float, str] | None:
    if not isinstance(entry, dict):
        return None
    start_s = entry.get("start")
    start_s = _clock_s(start_s) if isinstance(start_s, str) else seconds(start_s)
    text = _text(entry)
    return None if start_s is None or text is None else (start_s, plain(text))


def _text(entry: dict[str, Any]) -> str | None:
    text = entry.get("text")
    if "lines" not in entry:
        return text if isinstance(text, str) else None
    lines = entry["lines"]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return None
    return " ".join(lines)


def _clock_s(value: str) -> float | None:
    found = _TIME.fullmatch(value)
    if found is None:
        return None
    hours, minutes, milliseconds = int(found[1]), int(found[2]), int(found[3] + found[4])
    return ((hours * 60 + minutes) * 60_000 + milliseconds) / 1000
