"""WebVTT, by webvtt-py; the automatic captions of YouTube are de-rolled.

Automatic captions scroll: each cue shows the line before it again and one new line below, whose words carry times
(`this<00:05:04.199><c> will</c>`), and cues of 10 ms repeat what stands already. Read as they are, every line occurs
two or three times. Here the lines that a cue carries over from the cue before it are taken out. Subtitles that do not
scroll are left as they are: there a text that occurs twice in a row was said twice.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

from webvtt import WebVTT
from webvtt.errors import MalformedFileError

from pipelines.core.pipeline import Rejected
from pipelines.subtitles.cues import Subtitles, plain, subtitles

_WORD_TIME = re.compile(r"<\d+:\d\d[:.]\d")
_ROLLING_SHARE = 0.5
"""Of the cues, that begin with the line above: from here on a file without times of words scrolls too."""

_Lines = tuple[str, ...]


def is_webvtt(text: str) -> bool:
    """True for a text that begins as WebVTT does."""
    return text.startswith("WEBVTT")


def parse_webvtt(text: str) -> Subtitles:
    """The subtitles of a WebVTT text; raises `Rejected`."""
    try:
        captions = WebVTT.from_string(text).captions
    except MalformedFileError as error:
        raise Rejected("subtitles_malformed", f"WebVTT: {error}") from None
    starts = [_seconds(caption.start) for caption in captions]
    lines = [_lines(caption.text) for caption in captions]
    has_word_times = any(_WORD_TIME.search(caption.raw_text) for caption in captions)
    if has_word_times or _share_carried(lines) >= _ROLLING_SHARE:
        lines = list(_new_lines(lines))
    num_unreadable = max(0, sum("-->" in line for line in text.splitlines()) - len(captions))
    return subtitles(zip(starts, map(" ".join, lines), strict=True), num_unreadable)


def _lines(text: str) -> _Lines:
    lines = (" ".join(plain(line).split()) for line in text.splitlines())
    return tuple(line for line in lines if line)


def _share_carried(cues: Sequence[_Lines]) -> float:
    """The share of cues of which one has two lines or more, that begin with the last line of the cue before them."""
    pairs = list(itertools.pairwise(cues))
    carried = sum(bool(a and b and len(a) + len(b) > 2 and b[0] == a[-1]) for a, b in pairs)
    return carried / len(pairs) if pairs else 0.0


def _new_lines(cues: Sequence[_Lines]) -> Iterator[_Lines]:
    """For each cue its lines without those at its top that the cue before it shows at its bottom."""
    shown: _Lines = ()
    for lines in cues:
        most = min(len(shown), len(lines))
        carried = next((n for n in range(most, 0, -1) if shown[-n:] == lines[:n]), 0)
        yield lines[carried:]
        shown = lines or shown


def _seconds(timestamp: str) -> float:
    """`HH:MM:SS.mmm`, as webvtt-py writes every time."""
    hours, minutes, rest = timestamp.split(":")
    whole, milliseconds = rest.split(".")
    return (((int(hours) * 60 + int(minutes)) * 60 + int(whole)) * 1000 + int(milliseconds)) / 1000
