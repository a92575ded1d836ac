"""Differences between the tokenizer in Python and Stanford's program on generated captions.

    python -m tests.metrics.ptb_probe --count 20000 --seed 1

prints them, shortest first. All captions are in one list, so that the next caption is part of the context.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from emu.eval.metrics import ptb_tables
from emu.eval.metrics.ptb import PtbTokenizer, StanfordTokenizer

_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_UNICODE = (
    "éÉñßŁøÅ漢字かな한글אבعربдЖяΩσΣ٣४\u0301\xa0\u2003\u3000\xad\u200b\u2018\u2019\u201c\u201d\u201e\u2026\u2013\u2014"
    "\u2015\u2010\u2011\u2022\u20ac\xa3\xa5\xa2\xbd\xbc\xb2\xb0\xae\u2122\u2190\u2192\u2665\u2605\xd7\xf7\u2212\u2032"
    "\u2033\ufe0f\u200d\U0001f600\U0001f44d\U0001f1fa\U0001d54f\ufeff\x85\x92\x96\x7f\x01\t\xbf\xa1\xab\xbb\u2039\u203a"
    "\u3001\u3002\uff0c\uff01\u2044\u2160\u24b6İı\u017f\u1e9e\ufb01"
)
_ABBREVIATED = """
Mr. Mrs. Dr. St. U.S. U.K. etc. e.g. i.e. a.m. p.m. P.M. Inc. Corp. Ltd. Jr. No. no. Fig. vs. Ph.D. Jan. Sept. J. A.
Ave. Co. Calif. D.C. ft. in. approx. Gen. al. The In He It A One Mr Ms.
"""
_APOSTROPHES = """
can't won't don't isn't I'm he's they're we've you'll she'd it's 'tis 'twas y'all o'clock O'Neill d'Arc ma'am cannot
gonna gotta wanna lemme gimme rock'n'roll 'em 'cause '90s '99 dogs' boys' shouldn't've d'ye c'mon ne'er Hawai'i l'eau
"""
# a tilde stands for a space
_NUMBERS = """
5 12 1,000 3.14 1/2 50% $5 $1,200.50 10:30 10:30am 5'10" 6-8 1980s 1990's 2nd 1-2-3 555-1234 10/12/2004 -5 No.~5
1-800-555-1234 2004-10-12 +5 .5 1.5x 4x4 #1 1st. 5km 20°C 3D 1,2,3 5, 7. 007 1e5 1.2.3.4 £5 5€ 1½ 3~1/2 ½~cup
(555)~555-1234 +1~555~123~4567
"""
_ADDRESSES = r"""
http://www.example.com/a?b=1 www.example.com/photos/1 https://x.org example.com a@b.com foo.bar@baz.co.uk @user_1
@user #tag ftp://a.b/c example.com/photos/x bit.ly/abc x.jpg IMG_1234.JPG C:\dir /usr/bin a/b and/or w/ 1/2/3 <br/>
<b>bold</b> &amp; &quot; &#39; <3 :) :-) ;) :D :( ^_^ =) xD :P \o/ --> ... .... -- --- !!! ?! *** == & + / <a~href="x">
"""
_KNOWN = [
    word.replace("^", "").replace("_", "") + "."
    for table in (ptb_tables.TITLES, ptb_tables.SHORTENED, ptb_tables.BEFORE_NUMBERS)
    for word in table.split()
]
_WORDS = """
a the dog cat man woman girl boy people street table red blue green white black riding sitting standing holding baseball
playing running near behind under over with without and or but of in on at to from for by two three several many bicycle
skateboard surfboard kitchen bathroom bedroom giraffe elephant zebra pizza sandwich umbrella airplane motorcycle traffic
light bus train boat bench bird horse sheep cow bear backpack frisbee skis snowboard
"""
_KINDS: list[tuple[Sequence[str], int]] = [
    (_WORDS.split(), 40),
    (_ABBREVIATED.split(), 8),
    (_KNOWN, 4),
    (_APOSTROPHES.split(), 8),
    ([number.replace("~", " ") for number in _NUMBERS.split()], 9),
    ([address.replace("~", " ") for address in _ADDRESSES.split()], 7),
    (_SIGNS, 13),
    (_UNICODE, 6),
]


def made_caption(generator: random.Random) -> str:
    """A caption of words, numbers, abbreviations, addresses and punctuation, joined with and without spaces."""
    pieces: list[str] = []
    for _ in range(generator.randint(1, 9)):
        pieces.append(_piece(generator))
        roll = generator.random()
        pieces.append(" " if roll < 0.6 else "" if roll < 0.94 else generator.choice(_SIGNS))
    return "".join(pieces)


def made_noise(generator: random.Random) -> str:
    """A short caption of punctuation and letters that are hard to tokenize."""
    kinds = (_SIGNS, "abstndAB15", " ", _UNICODE)
    chosen = generator.choices(kinds, (45, 36, 12, 7), k=generator.randint(1, 10))
    return "".join(generator.choice(kind) for kind in chosen)


def made_captions(seed: int, count: int) -> list[str]:
    """`count` captions: two thirds are `made_caption`, some are empty, the rest is `made_noise`."""
    generator = random.Random(seed)
    makers = (made_caption, made_noise, lambda _: "")
    return [maker(generator) for maker in generator.choices(makers, (66, 31, 3), k=count)]


def differences(captions: Sequence[str], stanford: StanfordTokenizer) -> list[tuple[str, str, str]]:
    """Captions whose tokens differ, with Stanford's and ours."""
    theirs, ours = stanford(captions), PtbTokenizer()(captions)
    found = zip(captions, theirs, ours, strict=True)
    return [(caption, one, other) for caption, one, other in found if one != other]


def _piece(generator: random.Random) -> str:
    kinds, weights = zip(*_KINDS, strict=True)
    kind = generator.choices(range(len(kinds)), weights)[0]
    if kind == 0 and generator.random() < 0.3:
        letters = "abcdefghijklmnopqrstuvwxyz"
        piece = "".join(generator.choices(letters, k=generator.randint(1, 4)))
    else:
        piece = generator.choice(kinds[kind])
    return generator.choices((str, str.title, str.upper), (8, 2, 1))[0](piece)


@dataclass(frozen=True)
class Probe:
    """What to generate.

    Attributes:
        seed: of the captions.
        count: number of captions.
        shown: number of differences to print.
    """

    seed: int = 0
    count: int = 10_000
    shown: int = 40


def main() -> None:
    """Prints the differences."""
    options = tyro.cli(Probe)
    found = differences(made_captions(options.seed, options.count), StanfordTokenizer.find())
    print(f"{len(found)} of {options.count} differ")
    for caption, theirs, ours in sorted(found, key=lambda entry: len(entry[0]))[: options.shown]:
        print(f"{caption!r}\n  Stanford {theirs!r}\n  Python   {ours!r}")


if __name__ == "__main__":
    main()
