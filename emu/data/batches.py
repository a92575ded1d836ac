"""The batches of one rank: its share of the global batch of each step, packed into rows or padded.

The list of global batches follows from the recipe, the seed and the datasets (`emu/data/mixture.py`): a step takes
the next G samples of its corpus. Rank r of W makes the sequences from r G // W to (r + 1) G // W of them, so that any
number of ranks reads the same samples in the same order, and after a step every rank is at the same position. How a
rank lays out its share in rows and micro-batches changes no loss.

G is fixed when a run starts (ranks x micro-batches x batch size) and saved with its position. A bad sample is left out
of its step, whichever rank meets it; what is bad follows from its bytes alone. Storage that fails is no bad sample: it
ends the run.

Shapes: B batch, L sequence, N images, C channels, H W pixels, P patches, V vision width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emu.data.dataset import Place
from emu.data.mixture import Mixture, Source, is_held_out
from emu.data.packing import collate_packed, pack
from emu.data.sequence import Sequence, SequenceError, SequenceMaker
from emu.models.objective import IGNORED, Batch
from emu.models.visual import pixels_of
from schemas.images import ImageError
from schemas.validation import SchemaError

if TYPE_CHECKING:
    from emu.data.features import FeatureReader

Made = tuple[Sequence, Tensor]
"""A sequence with its images."""


@dataclass(frozen=True)
class BadSample:
    """A sample that a step leaves out, with a reason word and the words of the error."""

    corpus: str
    position: int
    """Of the endless stream of its corpus."""
    epoch: int
    shard: str
    key: str
    reason: str
    """One of `ImageError`, or sample_damaged (not as its format asks) or sample_unsuitable (not for this model)."""
    detail: str


REASONS = {SequenceError: "sample_unsuitable", SchemaError: "sample_damaged"}

Item = TypeVar("Item")
AnyBatch = TypeVar("AnyBatch")


def collate(sequences: Rows[Sequence], images: Rows[Tensor], pad: int, are_patches: bool) -> Batch:
    """A right-padded batch; `images` holds the `NCHW` or `NPV` images of each sequence."""
    ids_BL = pad_sequence([s.ids_L for s in sequences], batch_first=True, padding_value=pad)
    labels_BL = pad_sequence(
        [s.labels_L for s in sequences], batch_first=True, padding_value=IGNORED
    )
    lengths_B = torch.tensor([len(s.ids_L) for s in sequences])
    mask_BL = torch.arange(ids_BL.shape[1])[None, :] < lengths_B[:, None]
    joined = torch.cat(list(images)) if any(len(i) for i in images) else None
    if are_patches:
        return Batch(ids_BL, mask_BL, labels_BL, patches_NPV=joined)
    return Batch(ids_BL, mask_BL, labels_BL, pixels_NCHW=joined)


def images_of(sequence: Sequence, side: int, features: FeatureReader | None) -> Tensor:
    """The images of a sequence: patch tokens from `features` if given, else pixels of `side` x `side`."""
    if features is None:
        return pixels_of([slot.image for slot in sequence.slots], side)
    segments = [slot.segment for slot in sequence.slots]
    return features.patches(sequence.shard, sequence.key, segments)


@dataclass(frozen=True)
class Share:
    """The share of a global batch that `rank` among `world_size` ranks reads."""

    rank: int = 0
    world_size: int = 1

    def of(self, number: int) -> range:
        """The indices of this rank among `number`; shares differ by at most one."""
        start, stop = (r * number // self.world_size for r in (self.rank, self.rank + 1))
        return range(start, stop)


@dataclass(frozen=True)
class Layout:
    """How a rank cuts its share into micro-batches: one packed row each, or padded sequences."""

    batch_size: Mapping[str, int]
    """Padded sequences per micro-batch, by corpus."""
    row_length: int = 0
    """Positions of a packed row at most; 0: padded."""
    multiple: int = 1
    """Packed rows have a multiple of so many positions."""
    keeps_global_batch: bool = True
    """A saved run keeps its sequences per step on any number of ranks; else another number is refused."""


class StepStream(ABC, Generic[Item, AnyBatch]):
    """The micro-batches of each step for one rank, of any kind; `state` / `load` are exact.

    With `num_threads` > 0, threads decode the images of the next step during the current one.
    """

    def __init__(
        self,
        mixture: Mixture,
        layout: Layout,
        share: Share | None = None,
        num_threads: int = 0,
    ) -> None:
        self.mixture, self.layout = mixture, layout
        self.share = share or Share()
        self.corpus = ""
        """The corpus of the step that was read last."""
        self.positions = range(0)
        """Positions of the whole global batch of that step in the stream of its corpus."""
        self.read: list[str] = []
        """The keys of the samples that this rank has for that step, in order."""
        self.bad: list[BadSample] = []
        """What this rank has left out of that step."""
        self._pool = ThreadPoolExecutor(num_threads, "batches") if num_threads else None
        self._ahead: dict[tuple[str, int], Future[Item | BadSample | None]] = {}
        self._check()

    @abstractmethod
    def made(self, source: Source, place: Place) -> Item:
        """What the sample at a place becomes; on any thread.

        Raises `ImageError`, `SequenceError` or `SchemaError` for a bad sample.
        """

    @abstractmethod
    def batches(self, source: Source, items: list[Item]) -> list[AnyBatch]:
        """The micro-batches of some samples of a corpus, at least one."""

    def next_step(self) -> list[AnyBatch]:
        """The micro-batches of this rank for the next step; none if all its samples are bad."""
        source = self.mixture.next_source()
        own = self._positions(source)
        rows = [
            self._ahead.pop((source.name, position), None) or self._start(source, position)
            for position in own
        ]
        found = [row.result() for row in rows]
        self.read = [
            source.reader.place(position).key
            for position, one in zip(own, found, strict=True)
            if one is not None and not isinstance(one, BadSample)
        ]
        self.bad = [one for one in found if isinstance(one, BadSample)]
        start = source.reader.position
        self.positions = range(start, start + source.num_sequences)
        self.corpus = self.mixture.take().name
        if self._pool:
            following = self.mixture.next_source()
            for position in self._positions(following):
                self._ahead[following.name, position] = self._pool.submit(
                    self._make, following, position
                )
        return self._laid_out(source, found)

    def held_out(
        self, source: Source, places: Rows[Place]
    ) -> tuple[list[AnyBatch], list[BadSample]]:
        """Micro-batches of held-out samples, as in the first epoch, and the bad ones among them."""
        found = [self._made(source, place) for place in places]
        bad = [one for one in found if isinstance(one, BadSample)]
        return self._laid_out(source, found), bad

    def keys(self) -> list[str]:
        """The keys of the whole global batch that was read last, in order, without the held-out ones."""
        source = self.mixture.sources[self.corpus]
        kept = (position for position in self.positions if not source.is_held_out(position))
        return [source.reader.place(position).key for position in kept]

    def state(self) -> dict[str, Any]:
        """The position of the next step, the same on every rank."""
        return self.mixture.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a saved position; raises `DatasetError` for another stream."""
        now = {name: source.num_sequences for name, source in self.mixture.sources.items()}
        self.mixture.load(state)
        self._ahead.clear()
        for name, source in self.mixture.sources.items():
            if source.num_sequences != now[name] and not self.layout.keeps_global_batch:
                raise ValueError(
                    f"the run was saved with {source.num_sequences} sequences per step over all ranks, now it has "
                    f"{now[name]} (ranks x micro-batches x batch size); choose the batch size so that the "
                    "product is the same, or train with --train.normalisation global"
                )
        self._check()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _check(self) -> None:
        for source in self.mixture.sources.values():
            if source.num_sequences < self.share.world_size:
                raise ValueError(
                    f"corpus {source.name}: {source.num_sequences} sequences per step cannot be dealt to "
                    f"{self.share.world_size} ranks; use at most as many workers as sequences"
                )

    def _positions(self, source: Source) -> range:
        own = self.share.of(source.num_sequences)
        return range(source.reader.position + own.start, source.reader.position + own.stop)

    def _start(self, source: Source, position: int) -> Future[Item | BadSample | None]:
        if self._pool:
            return self._pool.submit(self._make, source, position)
        done: Future[Item | BadSample | None] = Future()
        done.set_result(self._make(source, position))
        return done

    def _make(self, source: Source, position: int) -> Item | BadSample | None:
        """What stands at a position for this run; None for a held-out sample."""
        place = source.reader.place(position)
        if source.held_out and is_held_out(place.key, source.held_out):
            return None
        return self._made(source, place, position)

    def _made(self, source: Source, place: Place, position: int = -1) -> Item | BadSample:
        try:
            return self.made(source, place)
        except (ImageError, SequenceError, SchemaError) as error:
            reason = error.reason if isinstance(error, ImageError) else REASONS[type(error)]
            shard = source.reader.dataset.entries[place.shard].name
            return BadSample(
                source.name, position, place.epoch, shard, place.key, reason, str(error)
            )

    def _laid_out(self, source: Source, found: Rows[Item | BadSample | None]) -> list[AnyBatch]:
        made = [one for one in found if one is not None and not isinstance(one, BadSample)]
        return self.batches(source, cast("list[Item]", made)) if made else []


class BatchStream(StepStream[Made, Batch]):
    """Sequences of text and images, packed into rows or padded."""

    def __init__(
        self,
        mixture: Mixture,
        maker: SequenceMaker,
        layout: Layout,
        share: Share | None = None,
        num_threads: int = 0,
    ) -> None:
        super().__init__(mixture, layout, share, num_threads)
        self.maker = maker
        lengths, row = self.maker.lengths, self.layout.row_length
        longest = max(lengths, key=lambda name: lengths[name])
        if row and row < lengths[longest]:
            raise ValueError(
                f"a packed row has {row} positions at most (row_length x num_rows), but {longest} is "
                f"{lengths[longest]}; give rows of at least the longest sequence, or 0 for padded batches"
            )

    def made(self, source: Source, place: Place) -> Made:
        """The sequence of a sample with its images."""
        sample = source.reader.dataset.sample(place.shard, place.row)
        sequence = self.maker.make(sample, place.epoch, place.shard)
        side = self.maker.model.vision.image_size
        return sequence, images_of(sequence, side, source.features)

    def batches(self, source: Source, items: list[Made]) -> list[Batch]:
        """Packed or padded, as the layout asks for."""
        return (
            self._packed(source, items) if self.layout.row_length else self._padded(source, items)
        )

    def _packed(self, source: Source, made: list[Made]) -> list[Batch]:
        pad, are_patches = self.maker.model.special.pad, source.features is not None
        return [
            collate_packed([made[index] for index in row], pad, are_patches, self.layout.multiple)
            for row in pack([len(s.ids_L) for s, _ in made], self.layout.row_length)
        ]

    def _padded(self, source: Source, made: list[Made]) -> list[Batch]:
        size = self.layout.batch_size[source.name]
        if len(made) > size:  # rows of similar length together: less padding, the same step
            made = sorted(made, key=lambda row: len(row[0].ids_L))
        pad, are_patches = self.maker.model.special.pad, source.features is not None
        return [
            collate([s for s, _ in part], [images for _, images in part], pad, are_patches)
            for part in (made[start : start + size] for start in range(0, len(made), size))
        ]
