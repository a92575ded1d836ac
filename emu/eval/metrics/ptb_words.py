"""Words that Stanford's tokeniser knows by heart, as seen from its output.

Every string of up to six letters, and the beginnings and skeletons of 260,000 longer words, went through the program
with a period after it, before a capital, a small letter, a digit and the end of a line.

A letter of a table stands for itself in either case; `^` before it means a capital alone, `_` a small letter alone.
"""

from __future__ import annotations

# These keep their period, whatever follows.
TITLES = """
adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs
hon insp invt jos lieut lt maj messrs m_fg mlle mme mr mrs ms msgr mt m_tg natl pfc ph pres prof profs pvt rep reps rev
sen sens sfc sgt spc st ste supt supts treas vs wm
"""
# These keep their period and give another one where a sentence ends: before white space and a capital, or two spaces.
SHORTENED = """
al ala apr ariz ^ark assn aug ^az bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec ^del ed.d esq est
etc ext feb fla fri ga ^ill inc ind intl jan jr jul jun kan kans ky ^la ltd mar ^mass md mich minn ^miss mo mon mont neb
nev nov oct okla ^ore ^pa penn ph.d plc ppt_e ppt_es ppt_y ppt_ys pt_e pt_es pt_y pt_ys rd rt sep sept seq sq sr sys tel
tenn ^tex thu thurs tue tues univ va vt ^wash wed wis wisc wyo
"""
# These keep their period before a number.
BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
# A sentence ends between an acronym and one of these, which begin with a capital.
SENTENCE_STARTS = """
^a ^about ^according ^additionally ^after ^an ^as ^at ^but ^earlier ^he ^her ^here ^however ^if ^in ^it ^last ^many
^more ^mr. ^ms. ^now ^once ^one ^other ^our ^she ^since ^so ^some ^such ^that ^the ^their ^then ^there ^these ^they
^this ^we ^what ^when ^while ^yet ^you
"""
# Two words written as one, and where they part.
JOINED = "can|not gim|me gon|na got|ta lem|me wan|na"
# Words that hold their apostrophe: the typewriter's alone, and a curly one too. Found among all words of nine letters
# and less that lose one to four letters to it.
STRAIGHT_APOSTROPHE = "c'mon e'er ev'ry li'l nat'l nor'easter s'mores"
ANY_APOSTROPHE = "c'est cap'n dunkin' somethin'"
# Ends of file names, whose name may begin with a digit.
FILE_ENDS = """
bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov pdf php pl png ppt ps py sql tar txt
wav x xml zip
"""
# Signs that count as a letter where its case does not matter: the long s, the Kelvin sign, the Turkish i.
_SAME_LETTER = {"s": "\u017f", "k": "\u212a", "i": "\u0130\u0131"}


def with_apostrophes(table: str, apostrophe: str) -> str:
    """`alternatives` of words whose apostrophes are those of the class `apostrophe`."""
    return alternatives(table).replace("\\'", apostrophe)


def alternatives(table: str) -> str:
    """The words of a table as a regular expression, long ones first."""
    words = sorted(table.split(), key=len, reverse=True)
    return "|".join("".join(_signs(word)) for word in words)


def _signs(word: str) -> list[str]:
    found, fixed = [], ""
    for sign in word:
        if sign in "^_":
            fixed = sign
            continue
        upper, lower = sign.upper(), sign.lower()
        either = f"[{upper}{lower}{_SAME_LETTER.get(lower, '')}]" if upper != lower else f"\\{sign}"
        found.append({"^": upper, "_": lower}.get(fixed, either))
        fixed = ""
    return found
