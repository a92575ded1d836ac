"""YouTube's timedtext XML: srv1 in two forms.

srv1 is `<transcript><text start="1.5">` (seconds), srv3 `<timedtext><body><p t="1500">` (milliseconds).

Texts of srv1 are escaped twice: `&amp;#39;` in the file is an apostrophe. A document type or an entity of the file's
own is refused before a parser sees it.
"""

import re
from xml.etree import ElementTree

from pipelines.core.pipeline import Rejected
from pipelines.subtitles.cues import Subtitles, plain, seconds, subtitles

_DECLARATION = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_FORMS = {"transcript": ("text", "start", 1.0), "timedtext": ("p", "t", 0.001)}
"""By root element: the element of a cue, the attribute of its start, and its unit in seconds."""


def is_timedtext(text: str) -> bool:
    """True for a text that begins as XML does."""
    return text.startswith("<")


def parse_timedtext(text: str) -> Subtitles:
    """The subtitles of a timedtext document; raises `Rejected`."""
    if _DECLARATION.search(text):
        raise Rejected("subtitles_with_entities")
    try:
        root = ElementTree.fromstring(text)  # without entities of its own it cannot expand
    except ElementTree.ParseError as error:
        raise Rejected("subtitles_malformed", f"XML: {error}") from None
    if root.tag not in _FORMS:
        names = " or ".join(f"<{name}>" for name in _FORMS)
        raise Rejected("subtitles_malformed", f"XML: <{root.tag[:40]}> is not {names}")
    element, attribute, unit_s = _FORMS[root.tag]
    cues, num_unreadable = [], 0
    for cue in root.iter(element):
        start_s = _start_s(cue.get(attribute), unit_s)
        if start_s is None:
            num_unreadable += 1
        else:
            cues.append((start_s, plain("".join(cue.itertext()))))
    return subtitles(cues, num_unreadable)


def _start_s(value: str | None, unit_s: float) -> float | None:
    try:
        return seconds(float(value or ""), unit_s)
    except ValueError:
        return None
