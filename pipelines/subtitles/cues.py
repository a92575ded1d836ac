"""Cues: what subtitles of every format are read into, and why a file may not be read."""

import html
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

from pipelines.core.pipeline import Reason, Rejected

SUBTITLE_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "subtitles_not_utf8": Reason("The subtitles are not valid UTF-8."),
        "subtitles_unknown_format": Reason(
            "The subtitles are neither WebVTT nor timedtext XML, JSON3 or a transcript in JSON."
        ),
        "subtitles_malformed": Reason("The subtitles break the rules of their format."),
        "subtitles_with_entities": Reason(
            "The XML declares a document type or entities, which may expand without bound; not read."
        ),
    }
)
"""Why subtitles could not be read."""

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class Cue(NamedTuple):
    """A text and when it begins to be shown."""

    start_s: float
    text: str


@dataclass(frozen=True)
class Subtitles:
    """The cues of a file in the order of their starts; cues without a text are left out."""

    cues: tuple[Cue, ...] = ()
    num_unreadable: int = 0
    """Cues that could not be read and are missing."""


def subtitles(cues: Iterable[tuple[float, str]], num_unreadable: int = 0) -> Subtitles:
    """Subtitles of starts in seconds and texts; white space is collapsed, equal starts keep their order.

    Raises `Rejected` where there are cues and none could be read.
    """
    cues = list(cues)
    if num_unreadable and not cues:
        raise Rejected(
            "subtitles_malformed", f"none of {num_unreadable:,} cues has a text and a start"
        )
    cleaned = [Cue(start_s, _in_one_line(text)) for start_s, text in cues]
    in_order = sorted((cue for cue in cleaned if cue.text), key=itemgetter(0))
    return Subtitles(tuple(in_order), num_unreadable)


def _in_one_line(text: str) -> str:
    # Controls and white space other than blanks are not printable.
    known = text if text.isprintable() else _CONTROL.sub("", text)
    return " ".join(known.split())


def plain(text: str) -> str:
    """The text of HTML, once: entities are decoded, then tags removed."""
    if "&" in text:
        text = html.unescape(text)
    return _TAG.sub("", text) if "<" in text else text


def seconds(value: object, unit_s: float = 1.0) -> float | None:
    """A number of units as seconds; None for what is no finite number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value) if unit_s == 1.0 else float(value) / round(1 / unit_s)
    except OverflowError:
        return None
    return found if math.isfinite(found) and found >= 0 else None
