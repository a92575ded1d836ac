"""The English WordNet 3.0 database: senses of words, hypernyms, and Wu-Palmer similarity by NLTK 3.3's rules.

The data is not part of this project: `load` reads the database files of WordNet 3.0 (`data.noun`, `index.noun`,
`noun.exc` and so on; wordnet(5WN)), wherever the user has them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Literal

RootRule = Literal["nltk-3.3", "nltk-3.8.1"]
_POS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# How inflected forms lose their endings, by part of speech (morphy(7WN)).
_ENDINGS = {
    "n": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
          ("men", "man"), ("ies", "y")),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}  # fmt: skip
# The same by the last letter of the form.
_ENDINGS_BY_LETTER = {
    pos: {
        letter: tuple(pair for pair in endings if pair[0][-1] == letter)
        for letter in {old[-1] for old, _ in endings}
    }
    for pos, endings in _ENDINGS.items()
}
_ROOT_NAME = "*ROOT*"
_HYPERNYMS = ("@", "@i")

# Part of speech and byte offset in its data file.
SenseId = tuple[str, int]
Exceptions = Mapping[str, Mapping[str, tuple[str, ...]]]
_ROOT: SenseId = ("", 0)
_Place = Path | zipfile.Path
_DEBIAN = Path("/usr/share/wordnet")
_WHERE_FROM = (
    "WUPS needs its database files: Debian's package wordnet-base has them, python -m nltk.downloader wordnet fetches "
    "them, and --wordnet names their folder or .zip file (docs/metrics.md)"
)


@dataclass(frozen=True)
class Sense:
    """A synset: part of speech and offset identify it; the name orders equals as NLTK does."""

    pos: str
    offset: int
    name: str
    hypernyms: tuple[int, ...]


# How a hypernym competes to be a subsumer: less its shortest depth, its name, itself, its number of levels.
_Rank = tuple[int, str, SenseId, int]
_ROOT_RANK: _Rank = (0, _ROOT_NAME, _ROOT, 1)


@dataclass(frozen=True)
class _Lineage:
    """The hypernyms of a sense, itself and the artificial root included.

    `paths` has the fewest steps up to each, `depth` the numbers of steps from the sense up to where there is nothing
    above, on the shortest and on the longest way. As far as they were asked for, `distances` has what similarity
    counts as the way to a hypernym, and `subsumers` the hypernyms in the order in which they are tried.
    """

    rank: _Rank
    paths: dict[SenseId, int]
    depth: tuple[int, int]
    distances: dict[SenseId, int]
    subsumers: list[_Rank]


class WordNet:
    """Senses by word and the similarity of two senses; records are read from the database when first asked for."""

    def __init__(
        self,
        index: Mapping[str, Mapping[str, str]],
        data: Mapping[str, bytes],
        exceptions: Exceptions,
    ) -> None:
        self._index, self._data, self._exceptions = index, data, exceptions
        self._forms: dict[tuple[str, str], list[str]] = {}
        self._senses: dict[SenseId, Sense] = {}
        self._lineages: dict[SenseId, _Lineage] = {}

    @classmethod
    def load(cls, place: Path) -> WordNet:
        """The database in a folder, or in the folder `wordnet` of a .zip file, as NLTK's downloader leaves it.

        Raises FileNotFoundError where files are missing, and ValueError where they are another version's or the file
        is no .zip file.
        """
        folder = _opened(place)
        names = [f"{kind}.{pos}" for kind in ("index", "data") for pos in _POS.values()]
        names += [f"{pos}.exc" for pos in _POS.values()]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"WordNet 3.0 is not in {place}: no {', '.join(missing[:3])}. {_WHERE_FROM}"
            )
        _require_version(folder / "data.noun", place)
        index = {pos: _records(folder / f"index.{name}") for pos, name in _POS.items()}
        forms = {pos: _records(folder / f"{name}.exc") for pos, name in _POS.items()}
        exceptions = {
            pos: {form: tuple(bases.split()) for form, bases in found.items()}
            for pos, found in forms.items()
        }
        return cls(
            index,
            {pos: (folder / f"data.{name}").read_bytes() for pos, name in _POS.items()},
            exceptions,
        )

    def base_forms(self, word: str, pos: str) -> list[str]:
        """The words of the database that `word` is a form of, itself first if it is one."""
        found = self._forms.get((word, pos))
        if found is None:
            found = self._forms[word, pos] = self._new_base_forms(word, pos)
        return found

    def _new_base_forms(self, word: str, pos: str) -> list[str]:
        if word in self._exceptions[pos]:
            return self._known([word, *self._exceptions[pos][word]], pos)
        forms = self._stripped([word], pos)
        found = self._known([word, *forms], pos)
        while forms and not found:
            forms = self._stripped(forms, pos)
            found = self._known(forms, pos)
        return found

    def first_sense(self, word: str) -> Sense | None:
        """The first sense of the word, nouns before verbs, adjectives and adverbs; None for an unknown word."""
        for pos in _POS:
            for form in self.base_forms(word.lower(), pos):
                return self._sense((pos, int(self._offset_fields(form, pos)[0])))
        return None

    def num_senses(self, word: str, pos: str) -> tuple[int, int]:
        """How many senses a base form has, and how many of them occur in WordNet's tagged texts (wndb(5WN))."""
        fields = self._index[pos][word].split()
        num_senses = int(fields[1])
        return num_senses, int(fields[-num_senses - 1])

    def hypernyms(self, sense: Sense) -> list[Sense]:
        """The senses directly above, instances' included."""
        return [self._sense((sense.pos, offset)) for offset in sense.hypernyms]

    def similarity(self, first: Sense, second: Sense, rule: RootRule = "nltk-3.3") -> float | None:
        """Wu-Palmer similarity as NLTK computes it; None where the senses share no hypernym.

        Parts of speech other than nouns have many roots, and NLTK may put an artificial one above them, so that any
        two senses are a little similar. NLTK 3.3 does where the first sense is a verb, NLTK 3.8.1 and later where
        either sense is not a noun. Published scores of NExT-OE are by the former.
        """
        with_root = (
            first.pos == "v" if rule == "nltk-3.3" else (first.pos, second.pos) != ("n", "n")
        )
        # hypernyms keep to a part of speech
        if first.pos != second.pos and not with_root:
            return None
        ours, theirs = self._lineage(first), self._lineage(second)
        if first.pos != second.pos:
            return 2.0 / (ours.distances[_ROOT] + theirs.distances[_ROOT] + 2)
        paths = theirs.paths
        for _, _, subsumer, depth in ours.subsumers or self._subsumers(ours):
            if subsumer in paths and (with_root or subsumer != _ROOT):
                lengths = self._distance(ours, subsumer), self._distance(theirs, subsumer)
                return 2.0 * depth / (lengths[0] + depth + lengths[1] + depth)
        return None

    def _offset_fields(self, word: str, pos: str) -> list[str]:
        fields = self._index[pos][word].split()
        return fields[-int(fields[1]) :]

    def _sense(self, key: SenseId) -> Sense:
        if key not in self._senses:
            data, start = self._data[key[0]], key[1]
            record = data[start : data.index(b"\n", start)].decode().split("|")[0].split()
            if int(record[0]) != start:
                raise ValueError(
                    f"no sense at {start} of WordNet's data.{_POS[key[0]]}: {record[0]!r}"
                )
            self._senses[key] = self._parsed(key, record)
        return self._senses[key]

    def _parsed(self, key: SenseId, record: list[str]) -> Sense:
        pos, offset = key
        # adjectives may carry a syntactic marker such as (p)
        word = record[4].split("(")[0].lower()
        pointers = record[4 + 2 * int(record[3], 16) :]
        hypernyms = tuple(
            int(pointers[2 + 4 * i])
            for i in range(int(pointers[0]))
            if pointers[1 + 4 * i] in _HYPERNYMS
        )
        number = self._offset_fields(word, pos).index(record[0]) + 1
        return Sense(pos, offset, f"{word}.{record[2]}.{number:02d}", hypernyms)

    def _known(self, forms: list[str], pos: str) -> list[str]:
        index = self._index[pos]
        found = [form for form in forms if form in index]
        return found if len(found) < 2 else list(dict.fromkeys(found))

    def _stripped(self, forms: list[str], pos: str) -> list[str]:
        return [
            form[: -len(old)] + new
            for form in forms
            for old, new in _ENDINGS_BY_LETTER[pos].get(form[-1:], ())
            if form.endswith(old)
        ]

    def _lineage(self, sense: Sense) -> _Lineage:
        own = (sense.pos, sense.offset)
        found = self._lineages.get(own)
        if found is None:
            found = self._lineages[own] = self._new_lineage(sense, own)
        return found

    def _new_lineage(self, sense: Sense, own: SenseId) -> _Lineage:
        parents = [self._lineage(parent) for parent in self.hypernyms(sense)]
        paths = {own: 0}
        for parent in parents:
            for key, distance in parent.paths.items():
                if key != _ROOT and distance + 1 < paths.get(key, distance + 2):
                    paths[key] = distance + 1
        shortest = min((parent.depth[0] + 1 for parent in parents), default=0)
        longest = max((parent.depth[1] + 1 for parent in parents), default=0)
        to_root = paths[_ROOT] = max(paths.values()) + 1
        rank = (-shortest, sense.name, own, longest + 1)
        return _Lineage(rank, paths, (shortest, longest), {own: 0, _ROOT: to_root}, [])

    def _subsumers(self, lineage: _Lineage) -> list[_Rank]:
        """The hypernyms, the deepest first; of equals the sense itself, else the first by name."""
        if not lineage.subsumers:
            above = [self._lineages[key].rank for key in lineage.paths if key != _ROOT]
            found = sorted([*above, _ROOT_RANK])
            place = [rank[0] for rank in found].index(lineage.rank[0])
            found.remove(lineage.rank)
            lineage.subsumers.extend([*found[:place], lineage.rank, *found[place:]])
        return lineage.subsumers

    def _distance(self, lineage: _Lineage, other: SenseId) -> int:
        """The shortest way to a hypernym over one of its own, which need not be `other` itself."""
        found = lineage.distances.get(other)
        if found is None:
            paths, others = lineage.paths, self._lineage(self._sense(other)).paths
            found = min(paths[key] + distance for key, distance in others.items())
            lineage.distances[other] = found
        return found


@lru_cache(maxsize=2)
def load_wordnet(place: Path) -> WordNet:
    """`WordNet.load`, once for each place."""
    return WordNet.load(place)


def find_wordnet(nltk_folders: Sequence[str] = ()) -> Path:
    """Where packages put WordNet 3.0: Debian's folder, or what NLTK's downloader left in one of its folders.

    Raises FileNotFoundError with what to install where there is none.
    """
    corpora = [Path(folder) / "corpora" for folder in nltk_folders]
    places = [_DEBIAN, *(one / name for one in corpora for name in ("wordnet", "wordnet.zip"))]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"WordNet 3.0 is not in {_DEBIAN}, nor where NLTK looks for data. {_WHERE_FROM}"
        )
    return found


def _opened(place: Path) -> _Place:
    if place.suffix != ".zip" or not place.is_file():
        return place
    try:
        return zipfile.Path(place, "wordnet/")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place} is no whole .zip file: {error}") from error


def _require_version(path: _Place, place: Path) -> None:
    """Raises ValueError where the licence at the top of a database file names another version than 3.0."""
    with path.open("r", encoding="utf-8") as lines:
        licence = " ".join(takewhile(lambda line: line.startswith(" "), lines))
    found = re.search(r"WordNet (\d+\.\d+) Copyright", licence)
    if found and found[1] != "3.0":
        raise ValueError(
            f"{place} has WordNet {found[1]}; the scores of NExT-OE are by WordNet 3.0, whose senses differ: "
            "--wordnet names the place of that version"
        )


def _records(path: _Place) -> dict[str, str]:
    """The rest of each line by its first word; the licence at the top is indented."""
    with path.open("r", encoding="utf-8") as lines:
        pairs = (line.partition(" ") for line in lines if not line.startswith(" "))
        return {word: rest for word, _, rest in pairs}
