"""Samples to sequences of token ids with image blocks, and sequences to the batches of one rank.

| sample                    | sequence (paper section 3.1)                                                 |
|---------------------------|------------------------------------------------------------------------------|
| pair (one image, one text)| `<s> B text </s>` or `<s> text B </s>`, with equal probability               |
| interleaved, type 1       | a random window of `window_length` positions with at most 5 images           |
| interleaved, type 2       | 5 sampled images with their sentences, at most `sampled_length` positions    |

B is an image block of `num_queries + 2` positions. Types 1 and 2 have equal probability. An image stands before or
after its sentence, with equal probability; its sentence is the text that follows it in the sample. Lengths count
text and image positions, `<s>` and `</s>` included, and a block is never cut. All random choices follow from
(seed, epoch, key of the sample), so a sequence does not depend on the rank that makes it, and every epoch has
another one.

Where the sources are silent: the start of a type 1 window is random, but not so late that positions stay unused
while the document is long enough; images after the fifth in the window are removed, and the text after them moves
up. Special tokens that are written in a text of the corpus are plain characters.

All ranks share one stream of samples. A step of W ranks takes its next G = W x num_micro x batch_size positions; rank
r reads the r-th share of G/W of them. After a step every rank is at the same position, so one state serves all
ranks, and a run can resume with another number of ranks: with G unchanged the global batches are the same.

Shapes: B batch, L sequence, N images, C channels, H W pixels, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emu.config import EmuConfig, SequenceConfig
from emu.data.dataset import ShardReader, derived_seed
from emu.models.objective import IGNORED, Batch, text_labels
from emu.models.visual import pixels_of
from emu.tokenizer import EmuTokenizer
from schemas.images import ImageError
from schemas.sample import Sample, Segment

if TYPE_CHECKING:
    from emu.data.features import FeatureReader


class SequenceError(ValueError):
    """A sample that cannot become a sequence; names the sample and the reason."""


@dataclass(frozen=True)
class Slot:
    """An image of a sequence: the index of its segment in the sample, and its encoded bytes."""

    segment: int
    image: bytes


Atom = int | Slot
"""The unit of cutting: a text token, or a whole image block."""


@dataclass(frozen=True)
class Sequence:
    """One row of a batch before padding; the slots fill its image blocks in order."""

    key: str
    shard: int
    ids_L: Tensor
    labels_L: Tensor
    """The ids, or -100 at positions without cross-entropy."""
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Passage:
    """A text with its images, which precede it in the sample."""

    slots: tuple[Slot, ...]
    text: str


class SequenceMaker:
    """Makes the sequences of one model and one seed from samples of pairs and interleaved documents."""

    def __init__(
        self, config: SequenceConfig, model: EmuConfig, tokenizer: EmuTokenizer, seed: int
    ) -> None:
        self.config, self.model, self.tokenizer, self.seed = config, model, tokenizer, seed
        self.block_length = model.former.num_queries + 2
        if len(tokenizer) != model.num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {model.num_embeddings}; "
                "give the tokenizer of the model"
            )
        for name in ("pair_length", "window_length", "sampled_length"):
            self._check_length(name)

    def make(self, sample: Sample, epoch: int, shard: int = 0) -> Sequence:
        """The sequence of a sample in an epoch; raises `SequenceError` for samples without a sequence format."""
        if any(s.role is not None or s.time_s is not None for s in sample.segments):
            raise SequenceError(
                f"sample '{sample.key}' of corpus '{sample.corpus}' has roles or times; dialogues, "
                "clips and storyboards have no sequence format in this release"
            )
        rng = Random(derived_seed("sequence", self.seed, epoch, sample.key))
        passages = passages_of(sample.segments)
        atoms = self._pair(passages, rng) if _is_pair(sample) else self._interleaved(passages, rng)
        return self._wrapped(sample.key, shard, atoms)

    def _pair(self, passages: list[Passage], rng: Random) -> list[Atom]:
        text = " ".join(passage.text for passage in passages)
        slot = next(slot for passage in passages for slot in passage.slots)
        room = self.config.pair_length - 2 - self.block_length
        tokens: list[Atom] = [*self.tokenizer.encode_text(text.strip())[:room]]
        return [slot, *tokens] if self._image_first(rng) else [*tokens, slot]

    def _interleaved(self, passages: list[Passage], rng: Random) -> list[Atom]:
        if rng.random() < self.config.window_probability:
            atoms = self._atoms(passages, rng)
            room = self.config.window_length - 2
            return self._cut(atoms, self._start(atoms, room, rng), room)
        with_image = [(n, slot) for n, passage in enumerate(passages) for slot in passage.slots]
        sampled = rng.sample(range(len(with_image)), min(self.config.max_images, len(with_image)))
        chosen: dict[int, list[Slot]] = {}
        for index in sorted(sampled):
            number, slot = with_image[index]
            chosen.setdefault(number, []).append(slot)
        kept = [Passage(tuple(slots), passages[n].text) for n, slots in chosen.items()]
        return self._cut(self._atoms(kept or passages, rng), 0, self.config.sampled_length - 2)

    def _atoms(self, passages: list[Passage], rng: Random) -> list[Atom]:
        """Tokens and slots in order, each image on a random side of its text."""
        atoms: list[Atom] = []
        run: list[str] = []
        for passage in passages:
            sides = [self._image_first(rng) for _ in passage.slots]
            before = [slot for slot, first in zip(passage.slots, sides, strict=True) if first]
            after = [slot for slot, first in zip(passage.slots, sides, strict=True) if not first]
            if before:
                atoms += [*self._encoded(run), *before]
                run = []
            run.append(passage.text)
            if after:
                atoms += [*self._encoded(run), *after]
                run = []
        return [*atoms, *self._encoded(run)]

    def _encoded(self, texts: list[str]) -> list[int]:
        return self.tokenizer.encode_text(" ".join(text for text in texts if text))

    def _start(self, atoms: list[Atom], room: int, rng: Random) -> int:
        """A random start from which `room` positions can still be filled; 0 in a short document."""
        length, last = 0, len(atoms)
        while last > 0 and length < room:
            last -= 1
            length += self._length(atoms[last])
        return rng.randint(0, last)

    def _cut(self, atoms: list[Atom], start: int, room: int) -> list[Atom]:
        """The atoms that fit into `room` positions from `start` on, with at most `max_images` images."""
        taken: list[Atom] = []
        num_images = 0
        for atom in atoms[start:]:
            if isinstance(atom, Slot):
                if num_images == self.config.max_images:
                    continue
                num_images += 1
            room -= self._length(atom)
            if room < 0:
                break
            taken.append(atom)
        return taken

    def _wrapped(self, key: str, shard: int, atoms: list[Atom]) -> Sequence:
        special = self.model.special
        block = [special.image_start, *[special.image] * (self.block_length - 2), special.image_end]
        ids = [special.bos]
        for atom in atoms:
            ids += block if isinstance(atom, Slot) else [atom]
        ids_L = torch.tensor([*ids, special.eos], dtype=torch.int64)
        labels_L = text_labels(ids_L, special, self.model.objective)
        slots = tuple(atom for atom in atoms if isinstance(atom, Slot))
        return Sequence(key, shard, ids_L, labels_L, slots)

    def _length(self, atom: Atom) -> int:
        return self.block_length if isinstance(atom, Slot) else 1

    def _image_first(self, rng: Random) -> bool:
        return rng.random() < self.config.image_first_probability

    def _check_length(self, name: str) -> None:
        length = getattr(self.config, name)
        least, most = self.block_length + 2, self.model.language.max_positions
        if not least <= length <= most:
            raise ValueError(
                f"{name} is {length}; give {least} (one image, <s> and </s>) to {most} (the "
                "positions of the language model)"
            )


def passages_of(segments: tuple[Segment, ...]) -> list[Passage]:
    """The texts in order, each with the images before it; images after the last text form a passage of their own."""
    passages: list[Passage] = []
    slots: list[Slot] = []
    for number, segment in enumerate(segments):
        if segment.kind == "image":
            slots.append(Slot(number, segment.image or b""))
        else:
            passages.append(Passage(tuple(slots), (segment.text or "").strip()))
            slots = []
    return [*passages, Passage(tuple(slots), "")] if slots else passages


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
        if self.size.num_micro > 1:  # rows of similar length together: less padding, the same step
            made.sort(key=lambda row: len(row[0].ids_L))
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


def _is_pair(sample: Sample) -> bool:
    return sorted(segment.kind for segment in sample.segments) == ["image", "text"]
