"""Cues: what subtitles of every format are read into, and why a file may not be read."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
    """The cues of a file in the order of their starts, as columns; cues without a text are left out."""

    starts_s: Sequence[float] = ()
    texts: Sequence[str] = ()
    num_unreadable: int = 0
    """Cues that could not be read and are missing."""

    @property
    def cues(self) -> tuple[Cue, ...]:
        """The cues one by one."""
        return tuple(map(Cue, self.starts_s, self.texts))


NO_SUBTITLES = Subtitles()


def subtitles(cues: Iterable[tuple[float, str]], num_unreadable: int = 0) -> Subtitles:
    """Subtitles of starts in seconds and texts; white space is collapsed, equal starts keep their order.

    Raises `Rejected` where there are cues and none could be read.
    """
    pairs = list(cues)
    if num_unreadable and not pairs:
        raise Rejected(
            "subtitles_malformed", f"none of {num_unreadable:,} cues has a text and a start"
        )
    return subtitles_of([start for start, _ in pairs], [text for _, text in pairs], num_unreadable)


def subtitles_of(
    starts_s: Sequence[float], texts: Sequence[str], num_unreadable: int = 0
) -> Subtitles:
    """The same of columns; of a file that needs no change, as nearly all of a player's, no cue is looked at alone."""
    joined = "\n".join(texts)
    if not _is_clean(joined, len(texts)):
        texts = [_in_one_line(text) for text in texts]
    if not all(texts) or sorted(starts_s) != list(starts_s):
        kept = (cue for cue in zip(starts_s, texts, strict=True) if cue[1])
        in_order = sorted(kept, key=itemgetter(0))
        starts_s, texts = [start for start, _ in in_order], [text for _, text in in_order]
    return Subtitles(starts_s, texts, num_unreadable)


def _is_clean(joined: str, num_texts: int) -> bool:
    """True where `_in_one_line` changes none of the texts, which are joined by line feeds.

    Of what is white space only blanks are printable.
    """
    if joined.count("\n") != max(num_texts - 1, 0):
        return False
    framed = f"\n{joined}\n"
    has_blanks = "  " in framed or "\n " in framed or " \n" in framed
    return not has_blanks and joined.replace("\n", "").isprintable()


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
