"""The forms of tokens that Stanford's tokeniser finds, written from what it does with made strings.

Each comment says what was seen. Where several forms fit, the one wins that reaches farthest, what must follow it
included; of equals the first of the list. Two groups of forms live in `ptb_signs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from emu.eval.metrics import ptb_characters as characters
from emu.eval.metrics import ptb_words as words

Spell = Callable[[str], str]
_SOFT_HYPHEN = "\xad"
# What Java takes for one word where it looks for its end, more or less.
_RUN = re.compile("(?:[^\\W\u2e80-\u9fff]|[.'\xad\u0300-\u036f\u200b-\u200d\u2010-\u2015-])+")
_STRAIGHT = str.maketrans({"\u2019": "'", "\x92": "'", "\u2018": "`", "\u201b": "`", "\x91": "`"})

# Insides of character classes. Only the plain space, the tab and these part tokens as white space does; other spaces
# of Unicode are unknown signs.
BLANK = " \t\xa0\u2000-\u200a\u3000"
WHITE = f"[{BLANK}\n\x85]"
LATIN = "A-Za-z"
# Typewriter and curly apostrophes, and with them what people type for one.
APOSTROPHE = "['\u2019\x92]"
ANY_APOSTROPHE = "['\u2019\x92\u2018\u201b\x91`]"
CLITIC = "[sSdDmM]|[lL][lL]|[rR][eE]|[vV][eE]"
# Tags with attributes in quotes, comments and declarations.
_NAME = f"[{LATIN}][{LATIN}0-9_:.-]*"
_ATTRIBUTE = f"{_NAME}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?"
TAG = f"(?:<{_NAME}(?: +{_ATTRIBUTE})* */? *>|</{_NAME} *>|<[!?][{LATIN}-][^>\n]*>)"


@dataclass(frozen=True)
class Form:
    """A form of tokens: pattern (group 1: what must follow), spelling, and whether a period token follows."""

    pattern: re.Pattern[str]
    spell: Spell
    ends_sentence: bool = False


def lower(token: str) -> str:
    """The token in lower case; its spaces do not break."""
    if "\u03a3" in token:
        token = _RUN.sub(_with_final_sigmas, token)
    return token.lower().replace(" ", "\xa0")


def _with_final_sigmas(run: re.Match[str]) -> str:
    """The run with its sigmas in lower case, as Java has them: final after the last letter that has a case."""
    signs = list(run[0])
    cased = [place for place, sign in enumerate(signs) if sign.isupper() or sign.islower()]
    for place in cased:
        if signs[place] == "\u03a3":
            final = place == cased[-1] and place != cased[0]
            signs[place] = "\u03c2" if final else "\u03c3"
    return "".join(signs)


def without_soft_hyphens(token: str) -> str:
    """`lower`, soft hyphens left out."""
    return lower(token.replace(_SOFT_HYPHEN, "") or "-")


def straight(token: str) -> str:
    """`lower` with apostrophes of the typewriter."""
    return lower(token).translate(_STRAIGHT)


def form(token: str, follow: str = "", spell: Spell = lower, ends_sentence: bool = False) -> Form:
    """A form from the pattern of its token and of what must follow."""
    return Form(re.compile(f"(?:{token})(?=({follow}))", re.DOTALL), spell, ends_sentence)


@dataclass(frozen=True)
class Classes:
    """Insides of character classes with the letters and digits of all scripts."""

    letters: str
    marks: str
    digits: str
    capitals: str

    @classmethod
    def of_all_scripts(cls) -> Classes:
        """The classes as the tables have them."""
        return cls(
            LATIN + characters.letters(),
            characters.marks(),
            "0-9" + characters.digits(),
            "A-Z" + characters.capitals(),
        )

    @property
    def word(self) -> str:
        """Letters and marks first, then digits too: abc, x2, but no 2x."""
        first = f"{self.letters}{self.marks}{_SOFT_HYPHEN}"
        return f"[{first}][{first}{self.digits}]*"

    @property
    def part(self) -> str:
        """A letter or digit of a compound."""
        return f"[{self.letters}{self.digits}]"

    @property
    def compound(self) -> str:
        """Letters and digits joined by single hyphens or underscores: 2x, t-shirt, snake_case, o'neill-smith.

        d, l and o may begin a part with an apostrophe and two signs.
        """
        elided = f"[dloDLO]{ANY_APOSTROPHE}(?={self.part}{{2}})"
        part = f"(?:{elided})?{self.part}+"
        return f"{part}(?:[-_\u058a\u2010\u2011]{part})*"


def word_forms(classes: Classes) -> list[Form]:
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
    """cannot, gonna and the like part: can not, gon na."""
    pairs = (word.partition("|") for word in words.JOINED.split())
    return [form(words.alternatives(head), words.alternatives(tail)) for head, _, tail in pairs]


def _abbreviations(classes: Classes) -> list[Form]:
    """Words that keep their period; see the tables of `ptb_words`.

    An acronym that ends a sentence gives another period; a single letter in its place gives its own away. A shortened
    word gives one before the end, two white spaces, or one and a capital.
    """
    acronym = rf"[{LATIN}](?:\.[{LATIN}])+\."
    start = rf"{WHITE}+(?:{words.alternatives(words.SENTENCE_STARTS)}|{TAG}){WHITE}"
    shortened = rf"(?:{words.alternatives(words.SHORTENED)})\."
    return [
        form(rf"{acronym}|[nN][oO][nN]-[uU]\.[sS]\.", start, ends_sentence=True),
        form(f"[{LATIN}]", rf"\.{start}"),
        form(rf"{acronym}|[{LATIN}]\."),
        form(
            shortened, rf"{WHITE}(?:{WHITE}|[{classes.capitals}]|{TAG}|\Z)|\Z", ends_sentence=True
        ),
        # Pty. Ltd. and Pte. Ltd. are one name
        form(r"[pP][tT][eEyY]\.", f"{WHITE}[lL][tT][dD]"),
        # two more signs count: al.a and etc.-a part, al.ab and etc.-ab do not
        form(shortened, "..?"),
        form(rf"(?:{words.alternatives(words.TITLES)})\."),
        form(rf"(?:{words.alternatives(words.BEFORE_NUMBERS)})\.", f"{WHITE}?[{classes.digits}]"),
    ]


def _negations() -> list[Form]:
    """don't is do n't, if letters from A to Z that do not end in n stand before."""
    return [
        form(f"[{LATIN}\xad]*?[A-MO-Za-mo-z]", f"[nN]{ANY_APOSTROPHE}[tT]", without_soft_hyphens),
        form(f"[nN]{ANY_APOSTROPHE}[tT]", spell=straight),
    ]


def _words(classes: Classes) -> list[Form]:
    """Words and what holds them together: periods, question and exclamation marks, hyphens, slashes, and signs."""
    dotted = f"{classes.word}(?:[.!?]{classes.word})+"
    dotted_or_not = f"{classes.word}(?:[.!?]{classes.word})*"
    slashed = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    part = f"[{LATIN}0-9{_SOFT_HYPHEN}]"
    # in its first part, a hyphenated word of A to Z and 0 to 9 holds periods and commas anywhere
    loose = f"[{LATIN}0-9][{LATIN}0-9.,{_SOFT_HYPHEN}]*"
    acronym = rf"[{LATIN}]\.(?:[{LATIN}]\.)+"
    joined = r"[A-Z]+(?:(?:&(?i:amp);|[&+])[A-Z]+)+"
    # before these signs, words keep a period
    keeping = "[,;:\u3001]"
    patterns = (classes.word, classes.compound, dotted)
    return [
        # counts against other forms: y's is no y', o'll no o'neill, etc.a's no etc.
        form(dotted_or_not, f"{APOSTROPHE}(?:{CLITIC})", without_soft_hyphens),
        *(form(pattern, spell=without_soft_hyphens) for pattern in patterns),
        *(form(rf"(?:{pattern})\.", keeping, without_soft_hyphens) for pattern in patterns),
        form(f"{loose}(?:-(?:{acronym}|{part}+))+", spell=without_soft_hyphens),
        form(rf"{loose}(?:-{part}+)+\.", keeping, without_soft_hyphens),
        form(rf"{slashed}(?:\\?/{slashed}){{1,2}}"),
        form(joined, spell=_with_ampersands),
        # of all words with a hyphen at their end, pro- and anti- alone keep it
        form("[pP][rR][oO]-|[aA][nN][tT][iI]-"),
        form(rf"{joined}\.", keeping, _with_ampersands),
    ]


def _with_ampersands(token: str) -> str:
    return lower(token).replace("&amp;", "&")


def _apostrophes(classes: Classes) -> list[Form]:
    """What begins, ends or is held together by an apostrophe."""
    return [
        # a curly one needs no end: ’sept is 's ept
        form(f"'(?:{CLITIC})", rf"[^{LATIN}]|\Z", straight),
        form(f"[\u2019\x92](?:{CLITIC})", spell=straight),
        # d', l', j', ol', and y' before a letter
        form(f"(?:[dDlLjJ]|[oO][lL]){APOSTROPHE}"),
        form(f"[yY]{APOSTROPHE}", f"[{LATIN}]"),
        form(f"{APOSTROPHE}(?:[tT][iI][lL][lL]?|[eE][mM]|[cC][aA][uU][sS][eE]|[nN]{APOSTROPHE}?)"),
        form("'[tT]", words.alternatives("is was")),
        form(words.with_apostrophes(words.STRAIGHT_APOSTROPHE, "'")),
        form(words.with_apostrophes(words.ANY_APOSTROPHE, APOSTROPHE)),
        form(f"[oO]{ANY_APOSTROPHE}[oO]"),
        # hawai'i, ma'am: two vowels, a letter before them
        form(f"[{classes.letters}]+[aeiouyAEIOUY]{ANY_APOSTROPHE}[aeiouA-Z][{classes.letters}]*"),
        # B'nai: any capital but I and Y
        form(f"[nA-HJ-XZ]{ANY_APOSTROPHE}[{classes.letters}]{{2,}}"),
        # '98 before white space, '90s anywhere
        form(f"{APOSTROPHE}[0-9][0-9]", WHITE),
        form(f"{APOSTROPHE}[1-9]0[sS]"),
    ]
