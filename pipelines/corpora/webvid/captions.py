"""Captions without the words that say nothing of what is seen: resolution, camera, stock phrases.

The paper flags such captions by a list of words and removes the words by rules (section 5 of its data description); the
lists were not released, so these are our own. `CAPTION_RULES` is applied from top to bottom; each removal is told, with
the name of its rule. A caption that no rule matches is returned as it was, but for white space at its ends.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionRule:
    """Removes what its patterns match, in any case, as whole words."""

    name: str
    patterns: tuple[str, ...]

    @property
    def expression(self) -> re.Pattern[str]:
        """All patterns as one; `re` keeps what it has compiled."""
        return re.compile(rf"(?<![\w-])(?:{'|'.join(self.patterns)})(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True)
class CleanCaption:
    """What remains of a caption, and what was removed."""

    text: str
    """Empty if nothing with a letter remains."""
    removed: tuple[tuple[str, str], ...] = ()
    """Name of the rule and removed text, in the order of removal."""


_IN = r"(?:(?:shot|filmed|recorded|captured|video|footage)\s+)?(?:(?:in|at|with|of|on|by)\s+(?:an?\s+|the\s+)?)?"
_MATERIAL = r"(?:\s+(?:stock\s+)?(?:video|footage|clip|resolution|quality|format|shot))*"
_SHOT = r"(?:\s+(?:shot|camera|footage|video|clip))*"
_RESOLUTION = (
    r"(?:(?:ultra|full|super|true)[\s-]*)?(?:u?hd|fhd|qhd|wqhd)(?:[\s-]?tv)?",
    r"(?:ultra[\s-]*|full[\s-]*)?high[\s-]+(?:definition|resolution)",
    r"(?:2(?:[.,]\d)?|4|5|6|8|12)-?k",
    r"\d{3,4}[\s-]?[pi]",
    r"\d{3,4}\s?[x×*]\s?\d{3,4}",
)
_SHOT_ON = r"(?:shot|filmed|recorded|captured)\s+(?:on|with|by|in)\s+(?:an?\s+|the\s+)?"
_WEAPONS = "epic|dragon|weapon|scarlet|helium|gemini|monstro|raven|komodo|one|mx|camera"

CAPTION_RULES: tuple[CaptionRule, ...] = (
    CaptionRule(
        "resolution",
        (rf"{_IN}(?:{'|'.join(_RESOLUTION)})(?:[\s,/-]+(?:{'|'.join(_RESOLUTION)}))*{_MATERIAL}",),
    ),
    CaptionRule(
        "frame_rate",
        (
            rf"{_IN}\d{{2,4}}(?:[.,]\d+)?[\s-]?(?:fps|frames\s+per\s+second|frames/s|p?hz)",
            r"(?:high|low|variable)\s+frame[\s-]?rate",
        ),
    ),
    CaptionRule(
        "speed",
        (
            rf"{_IN}(?:super\s+|extreme\s+|ultra\s+)?(?:slow[\s-]?motion|slow[\s-]?mo|slo[\s-]?mo){_SHOT}(?:\s+of)?",
            rf"{_IN}(?:time|hyper)[\s-]?lapse[ds]?{_SHOT}(?:\s+of)?",
            rf"{_IN}(?:real[\s-]?time|high[\s-]speed|sped[\s-]up|speed(?:ed)?[\s-]up)(?:\s+(?:camera|video|footage))",
        ),
    ),
    CaptionRule(
        "camera",
        (
            # A red dragon may well be seen: most names of cameras count only behind "shot on".
            rf"{_IN}red\s+(?:epic|scarlet|helium|monstro|komodo)(?:[\s-]x|\s+camera)?",
            rf"{_SHOT_ON}red(?:\s+(?:{_WEAPONS}))*",
            rf"{_SHOT_ON}(?:arri|sony|canon|nikon|panasonic|lumix|dji|iphone)(?:\s+[\w-]*\d[\w-]*)*(?:\s+camera)?",
            rf"{_IN}arri(?:\s+(?:alexa|amira)(?:\s+mini)?)?(?:\s+camera)?",
            rf"{_IN}black[\s-]?magic(?:\s+(?:pocket|cinema|ursa|camera|production))*",
            rf"{_IN}(?:canon|sony|nikon|panasonic)\s+[\w-]*\d[\w-]*(?:\s+(?:mark\s+\w+|camera))?",
            rf"{_IN}go[\s-]?pro(?:\s+(?:hero\s*\d*|camera|black))*",
            rf"{_IN}dji(?:\s+(?:phantom|mavic|inspire|osmo|mini|air|pro|\d+))*",
            rf"{_IN}(?:dslr|hdslr|bmpcc|camcorder)(?:\s+camera)?",
        ),
    ),
    CaptionRule(
        "codec",
        (
            rf"{_IN}(?:apple\s+)?pro[\s-]?res(?:\s+(?:raw|lt|proxy|4444|422|hq|xq))*",
            rf"{_IN}(?:h\.?26[45]|hevc|photo\s?jpeg|mjpe?g|cinema\s?dng|dnxh[dr])(?:\s+codec)?",
            rf"{_IN}\d{{1,2}}[\s-]?bits?(?:\s+colou?r)?",
            rf"{_IN}[sv]-?log\d?",
            r"(?:4:2:[02]|4:4:4)",
            r"(?:un)?graded\s+footage",
        ),
    ),
    CaptionRule(
        "lens",
        (
            rf"{_IN}\d{{1,3}}(?:[.,-]\d+)?\s?mm(?:\s+(?:lens|film))?",
            rf"{_IN}(?:macro|fish[\s-]?eye|wide[\s-]angle|telephoto|tele|anamorphic|tilt[\s-]shift|zoom|prime)\s+lens",
            rf"{_IN}(?:shallow|narrow|selective|small)\s+(?:depth\s+of\s+field|dof|focus)",
            r"f/\d+(?:[.,]\d)?",
            r"iso\s?\d{2,6}",
            r"shutter\s+(?:speed|angle)",
        ),
    ),
    CaptionRule(
        "rig",
        (
            rf"{_IN}(?:dolly|steadi[\s-]?cam|crane|jib|slider|gimbal|tripod|hand[\s-]?held|tracking|panning)\s+(?:shot|camera|footage|video|movement)",
            r"steadi[\s-]?cam",
        ),
    ),
    CaptionRule(
        "keying",
        (
            r"(?:(?:isolated|seperated|separated)\s+)?(?:on|over|against|with)?\s*(?:an?\s+|the\s+)?(?:green|blue|chroma)[\s-]?screen(?:\s+background)?",
            r"chroma[\s-]?key(?:ed|ing)?(?:\s+background)?",
            r"isolated(?:\s+(?:on|over|against))?\s+(?:an?\s+|the\s+)?(?:pure\s+|plain\s+)?(?:white|black|green|blue|transparent|alpha)(?:\s+(?:background|screen|backdrop))?",
            r"(?:(?:with|has|have|and|includes?|including)\s+)?(?:an?\s+)?(?:luma\s+matte|alpha(?:\s+(?:channel|matte|mask|background)))",
            r"transparent\s+background",
        ),
    ),
    CaptionRule(
        "stock",
        (
            r"(?:royalty|copyright)[\s-]?free(?:\s+(?:stock\s+)?(?:video|footage|clip)s?)?",
            r"(?:free\s+)?stock\s+(?:video|footage|clip|animation)s?(?:\s+(?:video|footage|clip)s?)?(?:\s+of)?",
            r"b[\s-]roll(?:\s+(?:video|footage|clip|shot)s?)?",
            r"(?:for\s+)?editorial(?:\s+use)?(?:\s+only)?",
            r"(?:(?:with|has)\s+)?(?:a\s+)?copy[\s-]?space(?:\s+for\s+(?:your\s+)?text)?",
            r"(?:place|space|room)\s+for\s+(?:your\s+)?(?:text|logo|copy)",
            r"(?:seamless(?:ly)?|perfect(?:ly)?|endless(?:ly)?)[\s-]+loop(?:ed|able|ing|s)?(?:\s+(?:video|footage|animation|background))?",
            r"loop(?:able|[\s-]ready)(?:\s+(?:video|footage|animation))?",
            r"can\s+be\s+used\s+as\s+(?:an?\s+)?loop(?:\s+item)?",
            r"video\s+footage|footage[/\s]video|footage",
            r"(?:shutterstock|getty\s?images|istock(?:photo)?|pond5|videohive|depositphotos)(?:\.com)?",
            r"model\s+released?|property\s+released?",
        ),
    ),
    CaptionRule(
        "opening", (r"^(?:an?\s+)?(?:video|clip|shot)s?\s+of(?=\s)", r"^video(?=\s*[-:,])")
    ),
)
"""In the order in which they are applied."""

_EMPTY = re.compile(r"[(\[{]\s*[,;:.\s/-]*\s*[)\]}]")
_DOUBLED = re.compile(r"\s*[,;:/|-]+(?=\s*[,;.])|(?<=[.])(?:\s*[.,;:/|]+)+")
_BEFORE_MARK = re.compile(r"\s+(?=[,;.!?])")
_HANGING = r"(?:in|at|with|on|of|and|or|by|for|an?|the|is|it's|as)"
_AT_END = re.compile(rf"(?:[\s,;:/|–—-]+|\s{_HANGING})+$", re.IGNORECASE)
_BEFORE_END = re.compile(rf"(?:[\s,;:/|–—-]+|\s{_HANGING})+(?=[.!?]+$)", re.IGNORECASE)
_AT_START = re.compile(r"^(?:[\s,;:.!/|–—-]+|(?:of|and|with|in|at|by)\s)+", re.IGNORECASE)


def clean_caption(caption: str, rules: Sequence[CaptionRule] = CAPTION_RULES) -> CleanCaption:
    """The caption without what the rules remove."""
    text, removed = caption.strip(), []
    for rule in rules:
        found = [match.group().strip() for match in rule.expression.finditer(text)]
        if found:
            removed += [(rule.name, part) for part in found]
            text = _tidied(rule.expression.sub(" ", text))
    if not any(character.isalpha() for character in text):
        text = ""
    return CleanCaption(text, tuple(removed))


def _tidied(text: str) -> str:
    """Text without what a removal leaves behind: doubled separators, empty brackets, hanging prepositions."""
    text = _EMPTY.sub(" ", " ".join(text.split()))
    text = _BEFORE_MARK.sub("", " ".join(text.split()))
    text = _DOUBLED.sub("", text)
    text = _BEFORE_END.sub("", _AT_END.sub("", text))
    return " ".join(_AT_START.sub("", text).split())
