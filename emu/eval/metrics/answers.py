"""Normalization of answers to visual questions by the official scorers and by the evaluation released with Emu."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

# Pairs: a contraction without apostrophe and with it. The scorers lower-case words before the lookup.
_CONTRACTIONS_TEXT = """
aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've couldnt've couldn't've
didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've hadn'tve hadn't've hasnt hasn't havent haven't
hed he'd hed've he'd've he'dve he'd've hes he's howd how'd howll how'll hows how's isnt isn't itd it'd itd've it'd've
it'dve it'd've itll it'll let's let's maam ma'am mightnt mightn't mightnt've mightn't've mightn'tve mightn't've
mightve might've mustnt mustn't mustve must've neednt needn't notve not've oclock o'clock oughtnt oughtn't
ow's'at 'ow's'at 'ows'at 'ow's'at 'ow'sat 'ow's'at shant shan't shed've she'd've she'dve she'd've she's she's
shouldve should've shouldnt shouldn't shouldnt've shouldn't've shouldn'tve shouldn't've somebody'd somebodyd
somebodyd've somebody'd've somebody'dve somebody'd've somebodyll somebody'll somebodys somebody's someoned someone'd
someoned've someone'd've someone'dve someone'd've someonell someone'll someones someone's somethingd something'd
somethingd've something'd've something'dve something'd've somethingll something'll thats that's thered there'd
thered've there'd've there'dve there'd've therere there're theres there's theyd they'd theyd've they'd've
they'dve they'd've theyll they'll theyre they're theyve they've twas 'twas wasnt wasn't wed've we'd've we'dve we'd've
weve we've werent weren't whatll what'll whatre what're whats what's whatve what've whens when's whered where'd
wheres where's whereve where've whod who'd whod've who'd've who'dve who'd've wholl who'll whos who's whove who've
whyll why'll whyre why're whys why's wont won't wouldve would've wouldnt wouldn't wouldnt've wouldn't've
wouldn'tve wouldn't've yall y'all yall'll y'all'll y'allll y'all'll yall'd've y'all'd've y'alld've y'all'd've
y'all'dve y'all'd've youd you'd youd've you'd've you'dve you'd've youll you'll youre you're youve you've
"""
_WORDS: Sequence[str] = _CONTRACTIONS_TEXT.split()
CONTRACTIONS: dict[str, str] = dict(zip(_WORDS[::2], _WORDS[1::2], strict=True))
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_COMMAS_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
# The official code passes a flag as the count of replacements: only the first 32 periods are removed.
_MAX_PERIODS = 32


def single_line(answer: str) -> str:
    """The answer with spaces for tabs and line feeds, without leading and trailing white space."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(answer: str, in_number: re.Pattern[str] = _COMMA_IN_NUMBER) -> str:
    """The answer without the scorer's punctuation.

    A punctuation character is removed if it is next to a space anywhere in the answer, or if the answer has a comma
    between digits; otherwise it becomes a space. Periods are removed unless a digit follows.
    """
    has_number = in_number.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        if mark in answer:
            is_removed = has_number or f"{mark} " in answer or f" {mark}" in answer
            text = text.replace(mark, "" if is_removed else " ")
    return _PERIOD.sub("", text, count=_MAX_PERIODS)


def normalized_words(answer: str) -> str:
    """The answer in lower case, with digits for number words, apostrophes in contractions and no articles."""
    numbered = (NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def normalized(answer: str) -> str:
    """The answer as the official VQA scorer compares it if the annotators disagree."""
    return normalized_words(without_punctuation(single_line(answer)))


def textvqa_normalized(answer: str) -> str:
    """The answer as the TextVQA evaluator of M4C compares it."""
    words = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalized_words(without_punctuation(single_line(words), _COMMAS_IN_NUMBER))


def stem(text: str) -> str:
    """The stem by NLTK's Porter stemmer in its default mode, which the released OKVQA scorer uses.

    The scorer passes whole answers, including spaces, which count as consonants. NLTK is imported on the first call,
    which takes some seconds.
    """
    return _stemmer()(text)


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem


def short_answer(reply: str) -> str:
    """The answer that the released Emu evaluation extracts from a model's reply.

    It is the first line up to ". ", a double quote or ", ", in lower case, without a final period and without a leading
    "it is ", "it's ", "a ", "an ", "the " (each removed once, in this order).
    """
    for end in ("\n", ". ", '"', ", "):
        reply = reply.split(end)[0]
    reply = reply.strip().lower().removesuffix(".")
    for start in ("it is ", "it's ", "a ", "an ", "the "):
        reply = reply.removeprefix(start)
    return reply


def short_caption(reply: str) -> str:
    """The caption that the released Emu evaluation extracts from a reply: the first sentence of the first line."""
    return reply.split("\n")[0].split(". ")[0].removesuffix(".").lower()
