"""The forms of tokens that Stanford's tokenizer recognizes, as regular expressions derived from its output.

Each comment states an observation. If several forms match, the one that reaches farthest wins, including the context
that must follow it; of equal ones the first in the list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from emu.eval.metrics import ptb_tables as tables
from emu.eval.metrics.ptb_tables import (
    ANY_APOSTROPHE,
    APOSTROPHE,
    LATIN,
    SOFT_HYPHEN,
    Classes,
    alternatives,
)

Spell = Callable[[str], str]
# Approximately what Java takes for one word when it looks for the end of a word.
_RUN = re.compile("(?:[^\\W\u2e80-\u9fff]|[.'\xad\u0300-\u036f\u200b-\u200d\u2010-\u2015-])+")
_STRAIGHT = str.maketrans({"\u2019": "'", "\x92": "'", "\u2018": "`", "\u201b": "`", "\x91": "`"})

# Contents of a character class. Only the plain space and the tab separate tokens as white space; other Unicode spaces
# are unknown characters.
BLANK = " \t\xa0\u2000-\u200a\u3000"
WHITE = f"[{BLANK}\n\x85]"
CLITIC = "[sSdDmM]|[lL][lL]|[rR][eE]|[vV][eE]"
# Tags with quoted attributes, comments and declarations.
_NAME = f"[{LATIN}][{LATIN}0-9_:.-]*"
_ATTRIBUTE = f"{_NAME}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?"
TAG = f"(?:<{_NAME}(?: +{_ATTRIBUTE})* */? *>|</{_NAME} *>|<[!?][{LATIN}-][^>\n]*>)"
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": "",
    "&mdash;": "--",
    "&ndash;": "--",
}
# Characters with another spelling in the output. The codes 80 to 97 are those of Windows-1252.
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
# What addresses may contain, and what their last character may be.
_INSIDE = '[^ \\t\\n\\f\\r"<>|()]'
_LAST = '[^ \\t\\n\\f\\r"<>|.!?(){},-]'
_PATH = f"/{_INSIDE}+{_LAST}"


@dataclass(frozen=True)
class Form:
    """A form of tokens: pattern (group 1: the context that must follow), output, and whether a period token follows."""

    pattern: re.Pattern[str]
    spell: Spell
    ends_sentence: bool = False


def all_forms() -> tuple[Form, ...]:
    """Every form, in order of precedence."""
    classes = Classes.of_all_scripts()
    return (
        *_markup(),
        *_addresses(classes),
        *_word_forms(classes),
        *_sites(),
        *_numbers(classes),
        *_emoticons(),
        *_runs(),
        *_symbols(),
    )


def lower(token: str) -> str:
    """The token in lower case, with no-break spaces for its spaces."""
    if "\u03a3" in token:
        token = _RUN.sub(_with_final_sigmas, token)
    return token.lower().replace(" ", "\xa0")


def _with_final_sigmas(run: re.Match[str]) -> str:
    """Lower-cases capital sigmas as Java does: the final form for the last of the letters that have a case."""
    letters = list(run[0])
    cased = [index for index, letter in enumerate(letters) if letter.isupper() or letter.islower()]
    for index in cased:
        if letters[index] == "\u03a3":
            is_final = index == cased[-1] and index != cased[0]
            letters[index] = "\u03c2" if is_final else "\u03c3"
    return "".join(letters)


def without_soft_hyphens(token: str) -> str:
    """`lower` without soft hyphens; a token of nothing else becomes a hyphen."""
    return lower(token.replace(SOFT_HYPHEN, "") or "-")


def straight(token: str) -> str:
    """`lower` with typewriter apostrophes."""
    return lower(token).translate(_STRAIGHT)


def form(token: str, follow: str = "", spell: Spell = lower, ends_sentence: bool = False) -> Form:
    """A form from the pattern of its token and of the context that must follow."""
    return Form(re.compile(f"(?:{token})(?=({follow}))", re.DOTALL), spell, ends_sentence)


def _word_forms(classes: Classes) -> list[Form]:
    """Words, compounds, contractions and abbreviations."""
    return [
        *_joined_words(),
        form(f"{classes.word}(?:[.!?]{classes.word})+", spell=without_soft_hyphens),
        *_abbreviations(classes),
        *_negations(),
        *_words(classes),
        *_apostrophes(classes),
    ]


def _joined_words() -> list[Form]:
    """cannot, gonna and similar words are split: can not, gon na."""
    pairs = (word.partition("|") for word in tables.JOINED.split())
    return [form(alternatives(head), alternatives(tail)) for head, _, tail in pairs]


def _abbreviations(classes: Classes) -> list[Form]:
    """Abbreviations that keep their period; see `ptb_tables`.

    An acronym at the end of a sentence emits a second period; a single letter in its position loses its own. A
    shortened word emits one before the end of the text, before two white spaces, and before white space and a capital.
    """
    acronym = rf"[{LATIN}](?:\.[{LATIN}])+\."
    start = rf"{WHITE}+(?:{alternatives(tables.SENTENCE_STARTS)}|{TAG}){WHITE}"
    shortened = rf"(?:{alternatives(tables.SHORTENED)})\."
    return [
        form(rf"{acronym}|[nN][oO][nN]-[uU]\.[sS]\.", start, ends_sentence=True),
        form(f"[{LATIN}]", rf"\.{start}"),
        form(rf"{acronym}|[{LATIN}]\."),
        form(
            shortened, rf"{WHITE}(?:{WHITE}|[{classes.capitals}]|{TAG}|\Z)|\Z", ends_sentence=True
        ),
        # Pty. Ltd. and Pte. Ltd. are one name
        form(r"[pP][tT][eEyY]\.", f"{WHITE}[lL][tT][dD]"),
        # two more characters matter: al.a and etc.-a are split, al.ab and etc.-ab are not
        form(shortened, "..?"),
        form(rf"(?:{alternatives(tables.TITLES)})\."),
        form(rf"(?:{alternatives(tables.BEFORE_NUMBERS)})\.", f"{WHITE}?[{classes.digits}]"),
    ]


def _negations() -> list[Form]:
    """don't is do n't, if the letters before it are from A to Z and do not end in n."""
    return [
        form(f"[{LATIN}\xad]*?[A-MO-Za-mo-z]", f"[nN]{ANY_APOSTROPHE}[tT]", without_soft_hyphens),
        form(f"[nN]{ANY_APOSTROPHE}[tT]", spell=straight),
    ]


def _words(classes: Classes) -> list[Form]:
    """Words with periods, question and exclamation marks, hyphens, slashes, and symbols inside."""
    dotted = f"{classes.word}(?:[.!?]{classes.word})+"
    dotted_or_not = f"{classes.word}(?:[.!?]{classes.word})*"
    slashed = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    part = f"[{LATIN}0-9{SOFT_HYPHEN}]"
    # the first part of a hyphenated word of A to Z and 0 to 9 may have periods and commas anywhere
    loose = f"[{LATIN}0-9][{LATIN}0-9.,{SOFT_HYPHEN}]*"
    acronym = rf"[{LATIN}]\.(?:[{LATIN}]\.)+"
    joined = r"[A-Z]+(?:(?:&(?i:amp);|[&+])[A-Z]+)+"
    # before these characters, words keep a period
    keeping = "[,;:\u3001]"
    patterns = (classes.word, classes.compound, dotted)
    return [
        # takes precedence over other forms: y's is not y', o'll not o'neill, etc.a's not etc.
        form(dotted_or_not, f"{APOSTROPHE}(?:{CLITIC})", without_soft_hyphens),
        *(form(pattern, spell=without_soft_hyphens) for pattern in patterns),
        *(form(rf"(?:{pattern})\.", keeping, without_soft_hyphens) for pattern in patterns),
        form(f"{loose}(?:-(?:{acronym}|{part}+))+", spell=without_soft_hyphens),
        form(rf"{loose}(?:-{part}+)+\.", keeping, without_soft_hyphens),
        form(rf"{slashed}(?:\\?/{slashed}){{1,2}}"),
        form(joined, spell=_with_ampersands),
        # only pro- and anti- keep a hyphen at their end
        form("[pP][rR][oO]-|[aA][nN][tT][iI]-"),
        form(rf"{joined}\.", keeping, _with_ampersands),
    ]


def _with_ampersands(token: str) -> str:
    return lower(token).replace("&amp;", "&")


def _apostrophes(classes: Classes) -> list[Form]:
    """Words that begin or end with an apostrophe, or have one inside."""
    return [
        # after a curly apostrophe the word may go on: ’sept is 's ept
        form(f"'(?:{CLITIC})", rf"[^{LATIN}]|\Z", straight),
        form(f"[\u2019\x92](?:{CLITIC})", spell=straight),
        # d', l', j', ol', and y' before a letter
        form(f"(?:[dDlLjJ]|[oO][lL]){APOSTROPHE}"),
        form(f"[yY]{APOSTROPHE}", f"[{LATIN}]"),
        form(f"{APOSTROPHE}(?:[tT][iI][lL][lL]?|[eE][mM]|[cC][aA][uU][sS][eE]|[nN]{APOSTROPHE}?)"),
        form("'[tT]", alternatives("is was")),
        form(tables.with_apostrophes(tables.WORDS_STRAIGHT_APOSTROPHE, "'")),
        form(tables.with_apostrophes(tables.WORDS_ANY_APOSTROPHE, APOSTROPHE)),
        form(f"[oO]{ANY_APOSTROPHE}[oO]"),
        # hawai'i, ma'am: between two vowels, after a letter
        form(f"[{classes.letters}]+[aeiouyAEIOUY]{ANY_APOSTROPHE}[aeiouA-Z][{classes.letters}]*"),
        # B'nai: any capital except I and Y
        form(f"[nA-HJ-XZ]{ANY_APOSTROPHE}[{classes.letters}]{{2,}}"),
        # '98 before white space, '90s anywhere
        form(f"{APOSTROPHE}[0-9][0-9]", WHITE),
        form(f"{APOSTROPHE}[1-9]0[sS]"),
    ]


def _markup() -> list[Form]:
    """Tags and a few entities; other entities are split."""
    known = "|".join(entity[1:-1] for entity in _ENTITIES)
    return [
        form(TAG),
        form('"|&quot;', "[A-Za-z0-9$]", _always("``")),
        form('"|&quot;', spell=_always("''")),
        form(f"&(?i:{known});", spell=_entity),
        # entities of quotes in capitals are tokens unchanged
        form("&apos;", spell=_always("'")),
        form("&(?i:#[0-9]+|[aeiou]acute|quot|apos);"),
    ]


def _entity(token: str) -> str:
    return _ENTITIES[token.lower()]


def _addresses(classes: Classes) -> list[Form]:
    """Mail and web addresses, handles and hash tags.

    Without http, a path requires www. and a top-level domain of two to four letters; see `_sites` too.
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
        form(rf"{name}(?:\.{name})*\.(?:{alternatives(tables.FILE_ENDS)})(?={WHITE}|[.,?!])"),
        form(f"@[{LATIN}_][{LATIN}0-9_]*"),
        form(f"#[{classes.letters}{classes.marks}\xad]+"),
    ]


def _without_soft_hyphens(token: str) -> str:
    return lower(token.replace("\xad", ""))


def _sites() -> list[Form]:
    """Hosts in small letters under com, net, org or edu, with or without a path."""
    small_part = "[^ \\t\\n\\f\\r\"`'<>|.!?(){},$\\[\\]/:;=\\\\^_@A-Z0-9-]"
    return [form(rf"(?:{small_part}+\.)+(?i:com|net|org|edu)(?:{_PATH})?")]


def _numbers(classes: Classes) -> list[Form]:
    """Numbers, fractions, dates and telephone numbers, which may contain one space."""
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


def _emoticons() -> list[Form]:
    """Emoticons: :-) unless a letter or digit follows, ^_^, (-.-) and combinations of the same parts."""
    edge = "[-^x=~<>']"
    return [
        form(r"[<>]?[:;=]['*o-]?[()DdPpO|\\{\[\]@](?=[^A-Za-z0-9])", spell=_round_brackets),
        form(
            rf"{edge}_{edge}|\({edge}[_.]?{edge}\)|\([\^x=~<>']-[\^x=~<>']\)", spell=_round_brackets
        ),
    ]


def _runs() -> list[Form]:
    """Characters that join with repetitions of themselves."""
    return [
        form(r"\.{3,5}|\.(?:[ \xa0]\.){2,4}", spell=_always("...")),
        form("-{2,4}", spell=_always("--")),
        form("-{5,}"),
        form(f"[{BLANK}]+", spell=_always("")),
        form(
            "[!?]+|#+|\\*+|_+|@+|<<|>>|(?:\\\\\\*)+|[\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089]+"
        ),
    ]


def _symbols() -> list[Form]:
    """Quotes, which depend on what follows, then every other symbol as a token of its own."""
    curly = "".join(_QUOTES) + "\u201a\u201e\u201f`"
    return [
        form("'", f"[{LATIN}][^ \\t\\n\xa0]", _always("`")),
        form("''?"),
        form(r"[cC](?:#|\+\+)|[fF]#"),
        form(f"[{curly}]{{1,2}}", spell=_quotes),
        form(f"[{''.join(map(_escaped, _SPELLED))}]", spell=_SPELLED.__getitem__),
        form(f"[!-/:-@\\[-`{{-~{tables.symbols()}]"),
    ]


def _quotes(token: str) -> str:
    return token.translate(_QUOTES_TABLE)


def _escaped(character: str) -> str:
    return f"\\{character}" if character.isascii() else character


def _always(spelling: str) -> Spell:
    return lambda _: spelling
