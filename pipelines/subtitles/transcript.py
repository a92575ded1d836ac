"""Transcripts of youtube-transcript-api, which Emu's tools store.

Such as `[{"text": "…", "start": 1.54, "duration": 4.16}]`, times in seconds.
"""

from typing import Any

from pipelines.core.pipeline import Rejected
from pipelines.subtitles.cues import Subtitles, plain, seconds, subtitles
from schemas import strict_json


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
    cues = [cue for cue in map(_cue, entries) if cue is not None]
    if entries and not cues:
        raise Rejected("subtitles_malformed", "transcript: no entry has a text and a start")
    return subtitles(cues, len(entries) - len(cues))


def _cue(entry: Any) -> tuple[float, str] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        return None
    start_s = seconds(entry.get("start"))
    return None if start_s is None else (start_s, plain(entry["text"]))
