"""JSON3, YouTube's own form: events with segments of words.

The first event may describe a window and has no segments; an event of nothing but a line feed (`aAppend`) scrolls. The
durations of events overlap, so a text ends where the next begins.
"""

from typing import Any

from pipelines.core.pipeline import Rejected
from pipelines.subtitles.cues import Subtitles, seconds, subtitles
from schemas import strict_json


def is_json3(text: str) -> bool:
    """True for a text that begins as a JSON object does."""
    return text.startswith("{")


def parse_json3(text: str) -> Subtitles:
    """The subtitles of a JSON3 document; raises `Rejected`."""
    try:
        document = strict_json.loads(text)
    except strict_json.JsonError as error:
        raise Rejected("subtitles_malformed", f"JSON3: {error}") from None
    events = document.get("events")
    if not isinstance(events, list):
        raise Rejected("subtitles_malformed", "JSON3: no list 'events'")
    cues, num_unreadable = [], 0
    for event in events:
        if isinstance(event, dict) and "segs" not in event:
            continue
        cue = _cue(event)
        if cue is None:
            num_unreadable += 1
        else:
            cues.append(cue)
    return subtitles(cues, num_unreadable)


def _cue(event: Any) -> tuple[float, str] | None:
    if not isinstance(event, dict) or not isinstance(event["segs"], list):
        return None
    start_s = seconds(event.get("tStartMs", 0), 0.001)
    words = [segment.get("utf8", "") for segment in event["segs"] if isinstance(segment, dict)]
    is_text = len(words) == len(event["segs"]) and all(isinstance(word, str) for word in words)
    return (start_s, "".join(words)) if start_s is not None and is_text else None
