"""The English WordNet 3.0 database: senses of words, hypernyms, and Wu-Palmer similarity by NLTK 3.3's rules.

The data is not part of this project: `load` reads the database files of WordNet 3.0 (`data.noun`, `index.noun`,
`noun.exc` and so on; wordnet(5WN)), wherever the user has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
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
_ROOT_NAME = "*ROOT*"
_HYPERNYMS = ("@", "@i")

# Part of speech and byte offset in its data file.
SenseId = tuple[str, int]
Exceptions = Mapping[str, Mapping[str, tuple[str, ...]]]
_ROOT: SenseId = ("", 0)


@dataclass(frozen=True)
class Sense:
    """A synset: part of speech and offset identify it; the name orders equals as NLTK does."""

    pos: str
    offset: int
    name: str
    hypernyms: tuple[int, ...]


class WordNet:
    """Senses by word and the similarity of two senses; records are read from the database when first asked for."""

    def __init__(
        self,
        index: Mapping[str, Mapping[str, str]],
        data: Mapping[str, bytes],
        exceptions: Exceptions,
    ) -> None:
        self._index, self._data, self._exceptions = index, data, exceptions
        self._senses: dict[SenseId, Sense] = {}
        self._paths: dict[SenseId, dict[SenseId, int]] = {}
        self._depths: dict[SenseId, tuple[int, int]] = {}
        self._distances: dict[tuple[SenseId, SenseId, bool], int | None] = {}

    @classmethod
    def load(cls, folder: Path) -> WordNet:
        """The database in `folder`; raises FileNotFoundError that says what to install where files are missing."""
        names = [f"{kind}.{pos}" for kind in ("index", "data") for pos in _POS.values()]
        names += [f"{pos}.exc" for pos in _POS.values()]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"WordNet 3.0 is not in {folder}: no {', '.join(missing[:3])}. WUPS needs its database files, which "
                "you bring (docs/metrics.md)"
            )
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
                return self._sense((pos, self._offsets(form, pos)[0]))
        return None

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
        subsumer = self._subsumer(first, second, with_root)
        if subsumer is None:
            return None
        depth = (0 if subsumer == _ROOT else self._depth(subsumer)[1]) + 1
        lengths = (
            self._distance(first, subsumer, with_root),
            self._distance(second, subsumer, with_root),
        )
        if lengths[0] is None or lengths[1] is None:
            return None
        return 2.0 * depth / (lengths[0] + depth + lengths[1] + depth)

    def _offsets(self, word: str, pos: str) -> list[int]:
        fields = self._index[pos][word].split()
        return [int(offset) for offset in fields[-int(fields[1]) :]]

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
        number = self._offsets(word, pos).index(offset) + 1
        return Sense(pos, offset, f"{word}.{record[2]}.{number:02d}", hypernyms)

    def _known(self, forms: list[str], pos: str) -> list[str]:
        return list(dict.fromkeys(form for form in forms if form in self._index[pos]))

    def _stripped(self, forms: list[str], pos: str) -> list[str]:
        return [
            form[: -len(old)] + new
            for form in forms
            for old, new in _ENDINGS[pos]
            if form.endswith(old)
        ]

    def _subsumer(self, first: Sense, second: Sense, with_root: bool) -> SenseId | None:
        """The deepest common hypernym by shortest depth; the first sense itself, else the first by name, of equals."""
        common = self._hypernym_paths(first).keys() & self._hypernym_paths(second).keys()
        if not common:
            return _ROOT if with_root else None
        deepest, candidates = (0, [_ROOT]) if with_root else (-1, [])
        for sense in common:
            depth = self._depth(sense)[0]
            if depth > deepest:
                deepest, candidates = depth, [sense]
            elif depth == deepest:
                candidates.append(sense)
        own = (first.pos, first.offset)
        return own if own in candidates else min(candidates, key=self._name)

    def _name(self, key: SenseId) -> str:
        return _ROOT_NAME if key == _ROOT else self._sense(key).name

    def _depth(self, key: SenseId) -> tuple[int, int]:
        """The lengths of the shortest and the longest path to a sense without hypernyms."""
        found = self._depths.get(key)
        if found is None:
            above = [self._depth((key[0], offset)) for offset in self._sense(key).hypernyms]
            shortest = min((depth[0] + 1 for depth in above), default=0)
            found = self._depths[key] = shortest, max((depth[1] + 1 for depth in above), default=0)
        return found

    def _distance(self, sense: Sense, other: SenseId, with_root: bool) -> int | None:
        key = (sense.pos, sense.offset), other, with_root
        if key not in self._distances:
            self._distances[key] = self._shortest_distance(sense, other, with_root)
        return self._distances[key]

    def _shortest_distance(self, sense: Sense, other: SenseId, with_root: bool) -> int | None:
        """The shortest way over a common hypernym, which need not be `other` itself."""
        paths = self._hypernym_paths(sense)
        if other == _ROOT:
            return max(paths.values()) + 1
        others = self._hypernym_paths(self._sense(other))
        distances = [paths[key] + others[key] for key in paths.keys() & others.keys()]
        if with_root:
            distances.append(max(paths.values()) + 1 + max(others.values()) + 1)
        return min(distances, default=None)

    def _hypernym_paths(self, sense: Sense) -> dict[SenseId, int]:
        """The shortest distance to each hypernym, the sense itself included."""
        start = (sense.pos, sense.offset)
        found = self._paths.get(start)
        if found is None:
            found = self._paths[start] = {}
            waiting, distance = [start], 0
            while waiting:
                found.update((key, distance) for key in waiting)
                above = (
                    (key[0], offset) for key in waiting for offset in self._sense(key).hypernyms
                )
                waiting = [key for key in dict.fromkeys(above) if key not in found]
                distance += 1
        return found


@lru_cache(maxsize=2)
def load_wordnet(folder: Path) -> WordNet:
    """`WordNet.load`, once for each folder."""
    return WordNet.load(folder)


def _records(path: Path) -> dict[str, str]:
    """The rest of each line by its first word; the licence at the top is indented."""
    with path.open(encoding="utf-8") as lines:
        pairs = (line.partition(" ") for line in lines if not line.startswith(" "))
        return {word: rest for word, _, rest in pairs}
