"""Subtitles: files of every format of `FORMATS` into cues. A format is one file and a line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.core.pipeline import Rejected
from pipelines.subtitles.cues import Subtitles
from pipelines.subtitles.json3 import is_json3, parse_json3
from pipelines.subtitles.timedtext import is_timedtext, parse_timedtext
from pipelines.subtitles.transcript import is_transcript, parse_transcript
from pipelines.subtitles.webvtt import is_webvtt, parse_webvtt


@dataclass(frozen=True)
class SubtitleFormat:
    """One format: how a text of it begins, and how it is read."""

    is_it: Callable[[str], bool]
    parse: Callable[[str], Subtitles]


FORMATS: Mapping[str, SubtitleFormat] = MappingProxyType(
    {
        "webvtt": SubtitleFormat(is_webvtt, parse_webvtt),
        "timedtext": SubtitleFormat(is_timedtext, parse_timedtext),
        "json3": SubtitleFormat(is_json3, parse_json3),
        "transcript": SubtitleFormat(is_transcript, parse_transcript),
    }
)
"""Name -> format; a file is recognised by its beginning, not by its name."""


def read_subtitles(data: bytes) -> Subtitles:
    """The subtitles of a file of any of the formats.

    Raises:
        Rejected: with a reason of `SUBTITLE_REASONS`.
    """
    try:
        text = data.decode("utf-8-sig").lstrip()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {error.start}"
        raise Rejected("subtitles_not_utf8", found) from None
    for form in FORMATS.values():
        if form.is_it(text):
            return form.parse(text)
    raise Rejected("subtitles_unknown_format", f"begins with {text[:20]!a}")
