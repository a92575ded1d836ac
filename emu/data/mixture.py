"""Which corpus a step draws from, and which of its samples: a function of the recipe alone.

A step is homogeneous: all its sequences come from one corpus, whose batch size and lengths fit together (paper, table
of the pretraining data). The corpus of a step is the one that lags most behind its share of the steps so far, so that
at every moment each has had its share to within a step or two. The samples of a corpus come in the order of its own
reader, epoch after epoch; each is used exactly once an epoch.

The state is a few integers: the steps and the position of each corpus. Nothing is replayed on resume, and nothing
depends on ranks or threads.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from emu.data.dataset import DatasetError, Permutation, Place, ShardReader, derived_bytes

if TYPE_CHECKING:
    from emu.data.features import FeatureReader

NAMED = re.compile(r"^(?P<name>[a-z0-9_]+)=(?P<rest>.+)$")
WEIGHTED = re.compile(r"^(?P<rest>.+):(?P<weight>[0-9]*\.?[0-9]+)$")

SHARDS = 16
"""Shards over which held-out samples are spread, where there are as many."""


@dataclass(frozen=True)
class Corpus:
    """A dataset of a mixture: its address, its name (None: the corpus of its manifest) and its weight."""

    address: str
    name: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.address}: weight {self.weight}; give a number above 0")


def parse_corpus(text: str) -> Corpus:
    """The corpus in `DIR`, `NAME=DIR`, `DIR:WEIGHT` or `NAME=DIR:WEIGHT`."""
    named = NAMED.match(text)
    rest = named["rest"] if named else text
    weighted = WEIGHTED.match(rest)
    return Corpus(
        weighted["rest"] if weighted else rest,
        named["name"] if named else None,
        float(weighted["weight"]) if weighted else 1.0,
    )


@dataclass
class Source:
    """A corpus that is open for training."""

    name: str
    weight: float
    reader: ShardReader
    num_sequences: int
    """Sequences per step over all ranks."""
    features: FeatureReader | None = None
    steps: int = 0
    """Steps that have drawn from it."""
    held_out: float = 0.0
    """The share of its samples that no step reads."""

    def is_held_out(self, position: int) -> bool:
        """True if the sample at a position of the stream belongs to the held-out part."""
        return self.held_out > 0 and is_held_out(self.reader.place(position).key, self.held_out)


def is_held_out(key: str, share: float) -> bool:
    """True for about this share of all keys, by their hash: the same in every run, and more for a larger share."""
    return int.from_bytes(derived_bytes("held out", key)[:8]) < share * 2**64


def held_out_places(source: Source, limit: int) -> list[Place]:
    """Up to `limit` held-out samples of a corpus, the same in every run, spread over its shards.

    Only the indexes of as many shards are read as it takes. Raises `DatasetError` if there is none.
    """
    dataset, rows = source.reader.dataset, source.reader.rows
    shards = [number for number, chosen in enumerate(rows) if len(chosen)]
    order = Permutation(len(shards), "held out")
    most = -(-limit // min(len(shards), SHARDS))
    found: list[Place] = []
    for index in range(len(shards)):
        shard = shards[order[index]]
        places = (
            Place(dataset.key(shard, int(row)), shard, int(row), 0, entry)
            for entry, row in enumerate(rows[shard])
        )
        kept = (place for place in places if is_held_out(place.key, source.held_out))
        found += itertools.islice(kept, min(most, limit - len(found)))
        if len(found) == limit:
            break
    if not found:
        raise DatasetError(
            f"corpus {source.name}: none of its {len(dataset):,} samples is in the held-out part of "
            f"{source.held_out:g}; raise --train.held-out, or 0 trains on all"
        )
    return found


class Mixture:
    """The sources of a run and the order in which steps draw from them; `state` / `load` are exact."""

    def __init__(self, sources: Sequence[Source]) -> None:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(
                f"{len(names)} datasets, names used more than once: {twice}; give each dataset its own: NAME=DIR"
            )
        self.sources = {source.name: source for source in sources}
        self._weights = {source.name: Fraction(source.weight) for source in sources}

    def next_source(self) -> Source:
        """The source of the next step: the one furthest behind its share; of equals, the first."""
        if len(self.sources) == 1:
            return next(iter(self.sources.values()))
        total = sum(self._weights.values())
        number = sum(source.steps for source in self.sources.values()) + 1
        return max(
            self.sources.values(), key=lambda s: self._weights[s.name] * number - s.steps * total
        )

    def take(self) -> Source:
        """Move past the next step; returns its source."""
        source = self.next_source()
        source.steps += 1
        source.reader.position += source.num_sequences
        return source

    def state(self) -> dict[str, Any]:
        """Steps and position of each corpus, the same on every rank."""
        return {
            "corpora": {
                name: source.reader.state()
                | {"global_batch": source.num_sequences, "steps": source.steps}
                for name, source in self.sources.items()
            }
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state, with its sequences per step; raises `DatasetError` for other data."""
        names = list(self.sources)
        saved = state.get("corpora") or {names[0]: state}  # earlier releases had one corpus
        if sorted(saved) != sorted(names):
            raise DatasetError(
                f"the run was saved with the corpora {sorted(saved)}, now they are {sorted(names)}; give the "
                "same ones"
            )
        for name, source in self.sources.items():
            source.reader.load(saved[name])
            source.num_sequences = saved[name]["global_batch"]
            position = source.reader.position
            source.steps = saved[name].get("steps", position // source.num_sequences)
