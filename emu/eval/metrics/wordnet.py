"""The English WordNet 3.0 database: senses of words, hypernyms, and Wu-Palmer similarity by NLTK 3.3's rules.

The data is not part of this project: `WordNet.load` reads the database files of WordNet 3.0 (`data.noun`, `index.noun`,
`noun.exc` and so on; wordnet(5WN)) from a folder of the user.
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
# Endings of inflected forms and their replacements, by part of speech (morphy(7WN)).
_ENDINGS = {
    "n": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
          ("men", "man"), ("ies", "y")),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}  # fmt: skip
# The same, also by the last letter of the ending.
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
_Location = Path | zipfile.Path
_DEBIAN = Path("/usr/share/wordnet")
_WHERE_FROM = (
    "WUPS needs its database files: install Debian's package wordnet-base or run python -m nltk.downloader wordnet, or "
    "give their folder or .zip file with --wordnet (docs/metrics.md)"
)


@dataclass(frozen=True)
class Sense:
    """A synset, identified by part of speech and offset; ties are ordered by name, as in NLTK."""

    pos: str
    offset: int
    name: str
    hypernyms: tuple[int, ...]


# Sort key of candidates for the subsumer: negative shortest depth, name, the sense, number of levels.
_Rank = tuple[int, str, SenseId, int]
_ROOT_RANK: _Rank = (0, _ROOT_NAME, _ROOT, 1)


@dataclass(frozen=True)
class _Lineage:
    """The hypernyms of a sense, including itself and the artificial root.

    Attributes:
        rank: of the sense as a candidate for the subsumer.
        paths: the smallest number of steps to each hypernym.
        depth: the numbers of steps to a top sense on the shortest and on the longest path.
        distances: the length of the path to a hypernym that the similarity uses; filled on demand.
        subsumers: the hypernyms in the order in which they are tried; filled on demand.
    """

    rank: _Rank
    paths: dict[SenseId, int]
    depth: tuple[int, int]
    distances: dict[SenseId, int]
    subsumers: list[_Rank]


class WordNet:
    """Senses of words and similarity of senses; records of the database are parsed on demand."""

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
    def load(cls, path: Path) -> WordNet:
        """Loads the database from a folder, or from the folder `wordnet` of a .zip file as NLTK downloads it.

        Raises FileNotFoundError if files are missing, and ValueError for another version or an invalid .zip file.
        """
        folder = _opened(path)
        names = [f"{kind}.{pos}" for kind in ("index", "data") for pos in _POS.values()]
        names += [f"{pos}.exc" for pos in _POS.values()]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"WordNet 3.0 is not in {path}: no {', '.join(missing[:3])}. {_WHERE_FROM}"
            )
        _require_version(folder / "data.noun", path)
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
        """The words of the database that `word` is a form of; `word` itself comes first if it is one."""
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
        """The first sense of the word, as a noun, verb, adjective or adverb in this order; None for an unknown word."""
        for pos in _POS:
            for form in self.base_forms(word.lower(), pos):
                return self._sense((pos, int(self._offset_fields(form, pos)[0])))
        return None

    def num_senses(self, word: str, pos: str) -> tuple[int, int]:
        """The numbers of senses of a base form: all, and those that occur in WordNet's tagged texts (wndb(5WN))."""
        fields = self._index[pos][word].split()
        num_senses = int(fields[1])
        return num_senses, int(fields[-num_senses - 1])

    def hypernyms(self, sense: Sense) -> list[Sense]:
        """The direct hypernyms, including those of instances."""
        return [self._sense((sense.pos, offset)) for offset in sense.hypernyms]

    def similarity(self, first: Sense, second: Sense, rule: RootRule = "nltk-3.3") -> float | None:
        """Wu-Palmer similarity as NLTK computes it; None if the senses share no hypernym.

        Parts of speech other than nouns have many roots. NLTK may add an artificial root above them, so that any two
        senses have some similarity: NLTK 3.3 if the first sense is a verb, NLTK 3.8.1 and later if either sense is not
        a noun. Published scores of NExT-OE use the former.
        """
        with_root = (
            first.pos == "v" if rule == "nltk-3.3" else (first.pos, second.pos) != ("n", "n")
        )
        # hypernyms have the part of speech of the sense
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
        """The hypernyms, deepest first; ties put the sense itself first, then order by name."""
        if not lineage.subsumers:
            above = [self._lineages[key].rank for key in lineage.paths if key != _ROOT]
            found = sorted([*above, _ROOT_RANK])
            position = [rank[0] for rank in found].index(lineage.rank[0])
            found.remove(lineage.rank)
            lineage.subsumers.extend([*found[:position], lineage.rank, *found[position:]])
        return lineage.subsumers

    def _distance(self, lineage: _Lineage, other: SenseId) -> int:
        """Length of the shortest path to a hypernym through any of its own hypernyms, as NLTK computes it."""
        found = lineage.distances.get(other)
        if found is None:
            paths, others = lineage.paths, self._lineage(self._sense(other)).paths
            found = min(paths[key] + distance for key, distance in others.items())
            lineage.distances[other] = found
        return found


@lru_cache(maxsize=2)
def load_wordnet(path: Path) -> WordNet:
    """`WordNet.load`, cached."""
    return WordNet.load(path)


def find_wordnet(nltk_folders: Sequence[str] = ()) -> Path:
    """The path of an installed WordNet 3.0: Debian's folder, or NLTK's download in one of its folders.

    Raises FileNotFoundError with what to install if there is none.
    """
    corpora = [Path(folder) / "corpora" for folder in nltk_folders]
    paths = [_DEBIAN, *(one / name for one in corpora for name in ("wordnet", "wordnet.zip"))]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"WordNet 3.0 is neither in {_DEBIAN} nor in NLTK's data folders. {_WHERE_FROM}"
        )
    return found


def _opened(path: Path) -> _Location:
    if path.suffix != ".zip" or not path.is_file():
        return path
    try:
        return zipfile.Path(path, "wordnet/")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete .zip file: {error}") from error


def _require_version(file: _Location, path: Path) -> None:
    """Raises ValueError if the license at the top of a database file names another version than 3.0."""
    with file.open("r", encoding="utf-8") as lines:
        license_text = " ".join(takewhile(lambda line: line.startswith(" "), lines))
    found = re.search(r"WordNet (\d+\.\d+) Copyright", license_text)
    if found and found[1] != "3.0":
        raise ValueError(
            f"{path} has WordNet {found[1]}; NExT-OE is scored with WordNet 3.0, whose senses differ; give "
            "that version with --wordnet"
        )


def _records(path: _Location) -> dict[str, str]:
    """The rest of each line by its first word, without the license at the top, which is indented."""
    with path.open("r", encoding="utf-8") as lines:
        pairs = (line.partition(" ") for line in lines if not line.startswith(" "))
        return {word: rest for word, _, rest in pairs}
