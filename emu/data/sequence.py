"""Samples to sequences: token ids with image blocks, in the formats of the paper (section 3.1).

| sample                    | sequence                                                                |
|---------------------------|-------------------------------------------------------------------------|
| pair (one image, one text)| `<s> B text </s>` or `<s> text B </s>`, drawn with equal odds           |
| interleaved, type 1       | a random subsequence of `window_length` positions, its first 5 images   |
| interleaved, type 2       | 5 drawn images with their sentences, at most `sampled_length` positions |

B is an image block of `num_queries + 2` positions. Types 1 and 2 are drawn with equal odds. An image
stands before or after its sentence, drawn with equal odds; its sentence is the text that follows it in
the sample. Lengths count text and image positions, `<s>` and `</s>` together, and a cut never falls
inside a block. What is drawn depends on (seed, epoch, key of the sample) alone, so a sequence is the
same whichever rank makes it, and a new one in each epoch.

Where the sources are silent: a type 1 subsequence starts at a position drawn so that the length is
used in full if the document is that long; images after the fifth in it are taken out, and text after
them moves up. Special tokens written in a text of the corpus are plain characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from emu.config import EmuConfig
from emu.data.dataset import derived_seed
from emu.models.objective import text_labels
from emu.tokenizer import EmuTokenizer
from schemas.sample import Sample, Segment


class SequenceError(ValueError):
    """A sample that has no sequence; names the sample and why."""


@dataclass(frozen=True)
class SequenceConfig:
    """Lengths and odds of the formats; positions count text and images together."""

    pair_length: int = 2048
    """Positions of a pair at most; longer captions are cut."""
    window_length: int = 1024
    """Positions of an interleaved sequence of type 1 (paper: 1024)."""
    sampled_length: int = 512
    """Positions of an interleaved sequence of type 2 (paper: 512)."""
    max_images: int = 5
    """Images of an interleaved sequence at most (paper: 5)."""
    window_odds: float = 0.5
    """Odds of type 1 against type 2."""
    image_first_odds: float = 0.5
    """Odds that an image stands before its text."""

    def __post_init__(self) -> None:
        for name in ("window_odds", "image_first_odds"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give a number in 0..1")
        if self.max_images < 1:
            raise ValueError(f"max_images is {self.max_images}, give at least 1")


@dataclass(frozen=True)
class Slot:
    """An image of a sequence: number of its segment in the sample, and its encoded bytes."""

    segment: int
    image: bytes


Atom = int | Slot
"""What a cut never divides: a text token, or a whole image block."""


@dataclass(frozen=True)
class Sequence:
    """One row of a batch before padding; the slots fill its image blocks in order."""

    key: str
    shard: int
    ids_L: Tensor
    labels_L: Tensor
    """The ids, -100 where there is no cross-entropy."""
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Passage:
    """A text with the images that belong to it, as they stand before it in the sample."""

    slots: tuple[Slot, ...]
    text: str


class SequenceMaker:
    """Makes the sequences of one model and one seed from samples of any corpus known so far."""

    def __init__(
        self, config: SequenceConfig, model: EmuConfig, tokenizer: EmuTokenizer, seed: int
    ) -> None:
        self.config, self.model, self.tokenizer, self.seed = config, model, tokenizer, seed
        self.block_length = model.former.num_queries + 2
        if len(tokenizer) != model.num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {model.num_embeddings}; "
                "give the tokenizer that belongs to the model"
            )
        for name in ("pair_length", "window_length", "sampled_length"):
            self._check_length(name)

    def make(self, sample: Sample, epoch: int, shard: int = 0) -> Sequence:
        """The sequence of a sample in an epoch; raises `SequenceError` where it has none."""
        if any(s.role is not None or s.time_s is not None for s in sample.segments):
            raise SequenceError(
                f"sample '{sample.key}' of corpus '{sample.corpus}' has roles or times; dialogues, "
                "clips and storyboards have no sequence form in this release"
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
        if rng.random() < self.config.window_odds:
            atoms = self._atoms(passages, rng)
            room = self.config.window_length - 2
            return self._cut(atoms, self._start(atoms, room, rng), room)
        with_image = [
            (number, slot) for number, passage in enumerate(passages) for slot in passage.slots
        ]
        drawn = rng.sample(range(len(with_image)), min(self.config.max_images, len(with_image)))
        chosen: dict[int, list[Slot]] = {}
        for place in sorted(drawn):
            number, slot = with_image[place]
            chosen.setdefault(number, []).append(slot)
        kept = [Passage(tuple(slots), passages[n].text) for n, slots in chosen.items()]
        return self._cut(self._atoms(kept or passages, rng), 0, self.config.sampled_length - 2)

    def _atoms(self, passages: list[Passage], rng: Random) -> list[Atom]:
        """Tokens and slots in order, each image on the side of its text that is drawn for it."""
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
        """What fits into `room` positions from `start` on, whole blocks only, images capped."""
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
        return rng.random() < self.config.image_first_odds

    def _check_length(self, name: str) -> None:
        length = getattr(self.config, name)
        least, most = self.block_length + 2, self.model.language.max_positions
        if not least <= length <= most:
            raise ValueError(
                f"{name} is {length}; give {least} (one image, <s> and </s>) to {most} (the "
                "positions of the language model)"
            )


def passages_of(segments: tuple[Segment, ...]) -> list[Passage]:
    """The texts in order, each with the images that stand before it.

    Images after the last text make a passage of their own.
    """
    passages: list[Passage] = []
    slots: list[Slot] = []
    for number, segment in enumerate(segments):
        if segment.kind == "image":
            slots.append(Slot(number, segment.image or b""))
        else:
            passages.append(Passage(tuple(slots), (segment.text or "").strip()))
            slots = []
    return [*passages, Passage(tuple(slots), "")] if slots else passages


def _is_pair(sample: Sample) -> bool:
    return sorted(segment.kind for segment in sample.segments) == ["image", "text"]
