"""The batches of one rank, step by step, from the stream of samples that all ranks share.

A step of W ranks takes the next G = W x num_micro x batch_size positions of the reader's stream; rank r reads the
r-th share of G/W of them. After a step every rank is at the same position, so one state serves all ranks, and a
run can resume with another number of ranks: with G unchanged the global batches are the same.

`collate` turns sequences into one padded `Batch`, with the pixels or the precomputed patch tokens of their images.

Shapes: B batch, L sequence, N images, C channels, H W pixels, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emu.data.dataset import ShardReader
from emu.data.sequence import Sequence, SequenceMaker
from emu.models.batch import Batch
from emu.models.objective import IGNORED
from emu.models.visual_encoder import pixels_of
from schemas.images import ImageError

if TYPE_CHECKING:
    from emu.data.features import FeatureReader


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


@dataclass(frozen=True)
class StepSize:
    """Sequences per micro-batch and rank, and micro-batches per step."""

    batch_size: int
    num_micro: int = 1

    @property
    def num_sequences(self) -> int:
        """Sequences per step and rank."""
        return self.batch_size * self.num_micro


class BatchStream:
    """The micro-batches of each step for one rank; `state` / `load` are exact.

    With `num_threads` > 0, threads decode the images of the next step during the current one.
    """

    def __init__(
        self,
        reader: ShardReader,
        maker: SequenceMaker,
        size: StepSize,
        share: Share | None = None,
        features: FeatureReader | None = None,
        num_threads: int = 0,
    ) -> None:
        self.reader, self.maker, self.size = reader, maker, size
        self.share, self.features = share or Share(), features
        self._pool = ThreadPoolExecutor(num_threads, "batches") if num_threads else None
        self._ahead: dict[int, Future[tuple[Sequence, Tensor]]] = {}

    @property
    def global_batch(self) -> int:
        """Sequences per step over all ranks."""
        return self.size.num_sequences * self.share.world_size

    def next_step(self) -> list[Batch]:
        """The micro-batches of this rank for the next step."""
        positions = self._positions(self.reader.position)
        rows = [self._ahead.pop(position, None) or self._start(position) for position in positions]
        made = [row.result() if isinstance(row, Future) else row for row in rows]
        self.reader.position += self.global_batch
        if self._pool:
            for position in self._positions(self.reader.position):
                self._ahead[position] = self._pool.submit(self._make, position)
        size = self.size.batch_size
        return [self._batch(made[i : i + size]) for i in range(0, len(made), size)]

    def state(self) -> dict[str, Any]:
        """The position of the next step, the same on every rank."""
        return self.reader.state() | {"global_batch": self.global_batch}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a saved position; raises `DatasetError` for another stream, ValueError for another G."""
        if state["global_batch"] != self.global_batch:
            raise ValueError(
                f"the run was saved with {state['global_batch']} sequences per step over all ranks, now it has "
                f"{self.global_batch} (ranks x micro-batches x batch size); choose the batch size so that the "
                "product is the same"
            )
        self.reader.load(state)
        self._ahead.clear()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _positions(self, first: int) -> range:
        start = first + self.share.rank * self.size.num_sequences
        return range(start, start + self.size.num_sequences)

    def _start(self, position: int) -> Future[tuple[Sequence, Tensor]] | tuple[Sequence, Tensor]:
        return self._pool.submit(self._make, position) if self._pool else self._make(position)

    def _make(self, position: int) -> tuple[Sequence, Tensor]:
        visit = self.reader.visit(position)
        sequence = self.maker.make(visit.sample, visit.epoch, visit.shard)
        side = self.maker.model.vision.image_size
        try:
            return sequence, images_of(sequence, side, self.features)
        except ImageError as error:
            raise error.at(f"sample '{sequence.key}'") from error

    def _batch(self, rows: list[tuple[Sequence, Tensor]]) -> Batch:
        pad = self.maker.model.special.pad
        sequences, images = [row[0] for row in rows], [row[1] for row in rows]
        return collate(sequences, images, pad, self.features is not None)
