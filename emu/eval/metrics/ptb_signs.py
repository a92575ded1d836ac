"""The forms of numbers, markup, addresses and signs; see `ptb_forms`."""

from __future__ import annotations

from emu.eval.metrics import ptb_characters as characters
from emu.eval.metrics import ptb_words as words
from emu.eval.metrics.ptb_forms import BLANK, LATIN, TAG, WHITE, Classes, Form, Spell, form, lower

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": "",
    "&mdash;": "--",
    "&ndash;": "--",
}
# Signs that are spelled in another way. The codes from 80 to 97 are what Windows has there.
_SPELLED = {
    **_BRACKETS,
    **dict.fromkeys("\u2026\x85", "..."),
    **dict.fromkeys("\u2013\u2014\u2015\x96\x97", "--"),
    **dict.fromkeys("\u20ac\u20a0\xa4\x80", "$"),
    "\xa2": "cents",
    "\xa3": "#",
    "\xad": "-",
    "\xbc": "1/4",
    "\xbd": "1/2",
    "\xbe": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
}
_QUOTES = {
    **dict.fromkeys("\u2018\u201b\x91\u2039", "`"),
    **dict.fromkeys("\u2019\x92\u203a", "'"),
    **dict.fromkeys("\u201c\x93\xab", "``"),
    **dict.fromkeys("\u201d\x94\xbb", "''"),
}
_QUOTES_TABLE = str.maketrans(_QUOTES)
# What addresses may hold, and what their last sign may be.
_INSIDE = '[^ \\t\\n\\f\\r"<>|()]'
_LAST = '[^ \\t\\n\\f\\r"<>|.!?(){},-]'
_PATH = f"/{_INSIDE}+{_LAST}"


def address_forms(classes: Classes) -> list[Form]:
    """Markup and addresses, which go before words that reach as far."""
    return [*_markup(), *_addresses(classes)]


def sign_forms(classes: Classes) -> list[Form]:
    """Numbers, faces and everything else that is no word."""
    return [*_sites(), *_numbers(classes), *_faces(), *_runs(), *_signs()]


def _markup() -> list[Form]:
    """Tags, and a few entities; the others fall apart."""
    known = "|".join(entity[1:-1] for entity in _ENTITIES)
    return [
        form(TAG),
        form('"|&quot;', "[A-Za-z0-9$]", _always("``")),
        form('"|&quot;', spell=_always("''")),
        form(f"&(?i:{known});", spell=_entity),
        # in capitals, those of quotes are tokens as they are
        form("&apos;", spell=_always("'")),
        form("&(?i:#[0-9]+|[aeiou]acute|quot|apos);"),
    ]


def _entity(token: str) -> str:
    return _ENTITIES[token.lower()]


def _addresses(classes: Classes) -> list[Form]:
    """Mail and web addresses, handles and hash tags.

    Without http, a path needs www. and a domain of two to four letters at the end of the host; see `_sites` too.
    """
    mail = '[^ \\t\\n\\f\\r"<>|(){}\xa0]'
    mail_part = '[^ \\t\\n\\f\\r"<>|().{}\xa0]'
    host_part = '[^ \\t\\n\\f\\r"<>|.!?(){},]'
    name = f"[{classes.letters}{classes.marks}{classes.digits}\xad]+"
    return [
        form(
            rf"(?:<|&(?i:lt);)?[{LATIN}0-9]{mail}*@(?:{mail_part}+\.)*{mail_part}+(?:>|&(?i:gt);)?"
        ),
        form(f"(?i:https?)://{_INSIDE[:-1]}{{}}]+{_LAST}"),
        form(rf"(?i:www)\.(?:{host_part}+\.)+[{LATIN}]{{2,4}}"),
        form(rf"(?i:www)\.(?:{host_part}+\.)+[{LATIN}]{{2,4}}{_PATH}"),
        form(rf"{name}(?:\.{name})*\.(?:{words.alternatives(words.FILE_ENDS)})(?={WHITE}|[.,?!])"),
        form(f"@[{LATIN}_][{LATIN}0-9_]*"),
        form(f"#[{classes.letters}{classes.marks}\xad]+"),
    ]


def _without_soft_hyphens(token: str) -> str:
    return lower(token.replace("\xad", ""))


def _sites() -> list[Form]:
    """Hosts of small letters under com, net, org or edu, with a path or without."""
    small_part = "[^ \\t\\n\\f\\r\"`'<>|.!?(){},$\\[\\]/:;=\\\\^_@A-Z0-9-]"
    return [form(rf"(?:{small_part}+\.)+(?i:com|net|org|edu)(?:{_PATH})?")]


def _numbers(classes: Classes) -> list[Form]:
    """Numbers with what is inside them, fractions, dates and telephone numbers, which may hold one space."""
    digit = f"[{classes.digits}]"
    return [
        form(
            f"(?:[-+]?[.,:\u066b\u066c]?|[-+]?\xad){digit}+(?:[,.:\xad\u066b\u066c]{digit}+)*",
            spell=_without_soft_hyphens,
        ),
        form(rf"(?:{digit}{{1,4}}[- \xa0])?{digit}{{1,4}}(?:\\?/|\u2044){digit}{{1,4}}"),
        form(f"{digit}{{1,2}}[-/]{digit}{{1,2}}[-/]{digit}{{2,4}}"),
        form(
            r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
            r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
            spell=_round_brackets,
        ),
        # US$
        form(r"[A-Z]*\$"),
    ]


def _round_brackets(token: str) -> str:
    return lower(token).replace("(", "-lrb-").replace(")", "-rrb-")


def _faces() -> list[Form]:
    """:-) unless a letter or digit follows, ^_^, (-.-) and what is put together from the same parts."""
    edge = "[-^x=~<>']"
    return [
        form(r"[<>]?[:;=]['*o-]?[()DdPpO|\\{\[\]@](?=[^A-Za-z0-9])", spell=_round_brackets),
        form(
            rf"{edge}_{edge}|\({edge}[_.]?{edge}\)|\([\^x=~<>']-[\^x=~<>']\)", spell=_round_brackets
        ),
    ]


def _runs() -> list[Form]:
    """Signs that join with their like."""
    return [
        form(r"\.{3,5}|\.(?:[ \xa0]\.){2,4}", spell=_always("...")),
        form("-{2,4}", spell=_always("--")),
        form("-{5,}"),
        form(f"[{BLANK}]+", spell=_always("")),
        form(
            "[!?]+|#+|\\*+|_+|@+|<<|>>|(?:\\\\\\*)+|[\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089]+"
        ),
    ]


def _signs() -> list[Form]:
    """Quotes by what follows them, then every other sign by itself."""
    curly = "".join(_QUOTES) + "\u201a\u201e\u201f`"
    return [
        form("'", f"[{LATIN}][^ \\t\\n\xa0]", _always("`")),
        form("''?"),
        form(r"[cC](?:#|\+\+)|[fF]#"),
        form(f"[{curly}]{{1,2}}", spell=_quotes),
        form(f"[{''.join(map(_escaped, _SPELLED))}]", spell=_SPELLED.__getitem__),
        form(f"[!-/:-@\\[-`{{-~{characters.symbols()}]"),
    ]


def _quotes(token: str) -> str:
    return token.translate(_QUOTES_TABLE)


def _escaped(sign: str) -> str:
    return f"\\{sign}" if sign.isascii() else sign


def _always(spelling: str) -> Spell:
    return lambda _: spelling
