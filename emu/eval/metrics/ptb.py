"""Tokens of captions as the official scorers of COCO have them, without Java.

Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) was run on millions of made strings, and these
modules were written from what came out: `ptb_characters` and `ptb_words` are tables of what was seen, `ptb_forms` and
`ptb_signs` the forms of tokens. The program's grammar and code were not consulted. docs/metrics.md says how far the
two agree; `StanfordTokenizer` runs the program itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from emu.eval.metrics import ptb_words as words
from emu.eval.metrics.metric import shown
from emu.eval.metrics.ptb_forms import Classes, Form, word_forms
from emu.eval.metrics.ptb_signs import address_forms, sign_forms

# What the official scorer drops after lower-casing, so -LRB- and its like stay as -lrb-.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"]
    + ["...", ";"]
)
# What the program takes for the end of a line, seen from its output: any of them inside a caption would give every
# later caption the tokens of the one before it.
_LINE_END = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
# Between spaces, these give the same tokens whatever stands around them, unless the last word keeps its period.
_SETTLED = re.compile('["(]*[A-Za-z]+(?:[-\'\u2019][A-Za-z]+)*[,;:!?)"]*\\.?')
_LAST_WORD = re.compile(r"([A-Za-z]+)\.\Z")
_PLAIN = re.compile("[A-Za-z]+(?= )")
_MAX_KNOWN = 1 << 20


@dataclass(frozen=True)
class PtbTokenizer:
    """Captions to their tokens joined by spaces, in lower case and without punctuation.

    A caption's tokens can depend on the beginning of the next one, as they do in the official scorer. Chunks between
    spaces that were met before are looked up, so one tokeniser for many captions is faster than many.
    """

    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """The tokens of each caption; raises ValueError for captions that are not Unicode text."""
        if not captions:
            return []
        text = "\n".join(one_line_each(captions))
        lines = text.split("\n")
        found, start, known = [], 0, self._known
        for index, line in enumerate(lines):
            # the end of the text is not the end of a line
            last = index == len(lines) - 1
            try:
                tokens = [known[chunk] for chunk in line.split(" ")] if not last else None
            except KeyError:
                tokens = self._learned(line)
            if tokens is None:
                tokens = self._scanned(text, start, start + len(line))
            found.append(" ".join(filter(None, tokens)))
            start += len(line) + 1
        return found

    def _learned(self, line: str) -> list[str] | None:
        """The tokens of the line's chunks, or None where one of them depends on its neighbours."""
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        for chunk in line.split(" "):
            if chunk not in self._known:
                if chunk and not _is_settled(chunk):
                    return None
                self._known[chunk] = _kept(raw_tokens(f"{chunk} x\n", 0, len(chunk)))
        return [self._known[chunk] for chunk in line.split(" ")]

    def _scanned(self, text: str, start: int, end: int) -> list[str]:
        line = " ".join(raw_tokens(text, start, end)).rstrip()
        return [token for token in line.split(" ") if token not in PUNCTUATION]


def one_line_each(captions: Sequence[str]) -> list[str]:
    """The captions with spaces for what the tokeniser takes for line ends.

    Raises ValueError for captions that hold half a surrogate pair, as JSON can.
    """
    text = "".join(captions)
    try:
        text.encode()
    except UnicodeEncodeError:
        wrong = [one for one in captions if any("\ud800" <= sign <= "\udfff" for sign in one)]
        raise ValueError(
            f"{len(wrong)} captions hold half a surrogate pair, which is no character: {shown(wrong)}"
        ) from None
    if _LINE_END.search(text):
        return [_LINE_END.sub(" ", caption) for caption in captions]
    return list(captions)


def raw_tokens(text: str, start: int, end: int) -> list[str]:
    """The tokens that begin from `start` to `end`, in lower case, punctuation included."""
    forms, joined, found = _forms(), _joined(), list[str]()
    while start < end:
        plain = _PLAIN.match(text, start)
        if plain and plain[0].lower() not in joined:
            found.append(plain[0].lower())
            start = plain.end()
            continue
        farthest, chosen, form = start, None, None
        for candidate in forms:
            match = candidate.pattern.match(text, start)
            if match and (reach := match.end(1)) > farthest:
                farthest, chosen, form = reach, match, candidate
        if chosen is None or form is None:
            # a sign that the program does not know
            start += 1
            continue
        found.append(form.spell(chosen[0]))
        if form.ends_sentence:
            found.append(".")
        start = chosen.end()
    return [token for token in found if token]


def _kept(tokens: list[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _is_settled(chunk: str) -> bool:
    if not _SETTLED.fullmatch(chunk):
        return False
    word = _LAST_WORD.search(chunk)
    return word is None or not (len(word[1]) == 1 or _keeps_period().fullmatch(word[1]))


@cache
def _forms() -> tuple[Form, ...]:
    classes = Classes.of_all_scripts()
    return (*address_forms(classes), *word_forms(classes), *sign_forms(classes))


@cache
def _keeps_period() -> re.Pattern[str]:
    tables = (words.TITLES, words.SHORTENED, words.BEFORE_NUMBERS)
    return re.compile(words.alternatives(" ".join(tables)))


@cache
def _joined() -> frozenset[str]:
    return frozenset(words.JOINED.replace("|", "").split())
