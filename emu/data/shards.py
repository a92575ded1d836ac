"""ShardReader: the endless, shuffled, resumable stream of samples that all ranks share.

Place n of the stream is sample `n % N` of epoch `n // N`, N the size of the dataset. The order of an
epoch is arithmetic, so any place is found at once and the state of a reader is two numbers:

1. the shards are permuted, anew for each epoch;
2. `window` shards in a row form a window; the samples of a window are permuted among each other.

A dataset of up to `window` shards (64: about 64,000 samples) is thus shuffled as one. In a larger one
a window bounds how many shards are open at once, so that reads stay near each other on disks and
object stores; a sample still meets other neighbours in each epoch. Memory: one number a shard.

Ranks do not appear here: at a step, rank r of W reads its part of the places of the global batch
(`emu/data/stream.py`), and the same state resumes any number of ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from emu.data.dataset import Dataset, DatasetError, Recent
from emu.data.permutation import Permutation
from schemas.sample import Sample

WINDOW = 64


@dataclass(frozen=True)
class ReaderState:
    """Where a reader stands, and what it reads: another dataset or seed is refused on load."""

    epoch: int
    position: int
    seed: int
    shuffle: bool
    window: int
    dataset: str
    """`Dataset.digest`."""


@dataclass(frozen=True)
class Visit:
    """A sample as met in an epoch, and the shard that it lies in."""

    sample: Sample
    shard: int
    epoch: int


class ShardReader:
    """Iterates over the samples of a published dataset without end; `state` / `load` are exact.

    Raises `DatasetError` for a dataset that is not complete, not readable or without samples.
    """

    def __init__(
        self, dataset_dir: str | Path, seed: int, shuffle: bool = True, window: int = WINDOW
    ) -> None:
        self.dataset = Dataset(dataset_dir, num_open=2 * window)
        self.seed, self.shuffle, self.window = seed, shuffle, window
        self._sizes = tuple(entry.num_samples for entry in self.dataset.entries)
        self._orders = Recent(4, self._make_order)
        self.place = 0
        """Number of the next sample, counted over all epochs."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[Sample]:
        while True:
            visit = self.visit(self.place)
            self.place += 1
            yield visit.sample

    def visit(self, place: int) -> Visit:
        """The sample at a place of the endless stream; does not move the reader."""
        epoch, position = divmod(place, len(self.dataset))
        shard, row = self.locate(epoch, position)
        return Visit(self.dataset.sample(shard, row), shard, epoch)

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """Number of the shard and row of a position in an epoch."""
        order = self._orders[epoch]
        window = bisect_right(order.window_starts, position) - 1
        start = order.window_starts[window]
        inside = position - start
        if self.shuffle:
            size = order.window_starts[window + 1] - start
            inside = Permutation(size, self.seed, "samples", epoch, window)[inside]
        place = start + inside
        slot = bisect_right(order.shard_starts, place) - 1
        return order.shards[slot], place - order.shard_starts[slot]

    def state(self) -> dict[str, Any]:
        """The position as a JSON object of constant size."""
        epoch, position = divmod(self.place, len(self.dataset))
        return asdict(
            ReaderState(epoch, position, self.seed, self.shuffle, self.window, self.dataset.digest)
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; raises `DatasetError` where it is that of another stream."""
        now = self.state()
        for name in ("dataset", "seed", "shuffle", "window"):
            if state[name] != now[name]:
                raise DatasetError(
                    f"{self.dataset.address}: the saved position is for {name} {state[name]!r}, "
                    f"here it is {now[name]!r}; the order of the samples would differ"
                )
        self.place = state["epoch"] * len(self.dataset) + state["position"]

    def _make_order(self, epoch: int) -> EpochOrder:
        shards = [number for number in range(len(self._sizes)) if self._sizes[number]]
        if self.shuffle:
            permutation = Permutation(len(shards), self.seed, "shards", epoch)
            shards = [shards[permutation[place]] for place in range(len(shards))]
        ends = list(accumulate(self._sizes[shard] for shard in shards))
        starts = (0, *ends[:-1])
        return EpochOrder(tuple(shards), starts, (*starts[:: self.window], ends[-1]))


@dataclass(frozen=True)
class EpochOrder:
    """The shards in the order of an epoch, and where they and their windows start."""

    shards: tuple[int, ...]
    shard_starts: tuple[int, ...]
    window_starts: tuple[int, ...]
    """One more than windows: the last is the size of the epoch."""
