"""Samples to sequences of token ids with image blocks.

| sample                      | sequence (paper section 3.1)                                                     |
|-----------------------------|----------------------------------------------------------------------------------|
| pair (one image, one text)  | `<s> B text </s>` or `<s> text B </s>`, with equal probability                   |
| interleaved, type 1         | a random window of `window_length` positions with at most 5 images               |
| interleaved, type 2         | 5 sampled images with their sentences, at most `sampled_length` positions        |
| clip (frames with times,    | `<s> B … B text </s>` or `<s> text B … B </s>`, with equal probability; at most  |
| text without)               | `clip_frames` frames, sampled at random and in order of time                     |
| storyboard (frames and      | frames and subtitles in order of time, a frame first where times are equal; a    |
| texts with times)           | random window of `storyboard_length` positions                                   |
| dialogue (roles)            | `<s>` and the template of `emu/data/dialogue.py`, at most `dialogue_length`      |
|                             | positions from the start; only answers are targets                               |

What a sample is follows from its segments. B is an image block of `num_queries + 2` positions. Types 1 and 2 have
equal probability. An image stands before or after its sentence, with equal probability; its sentence is the text that
follows it in the sample. Lengths count text and image positions, `<s>` and `</s>` included, and a block is never cut.
All random choices follow from (seed, epoch, key of the sample), so a sequence does not depend on the rank that makes
it, and every epoch has another one.

Where the sources are silent: the start of a window is random, but not so late that positions stay unused while the
document is long enough; images after the fifth in a window of type 1 are removed, and the text after them moves up; of
a clip that does not fit the text is cut, then frames are left out. Special tokens that are written in a text of the
corpus are plain characters.

Shapes: L sequence.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from emu.config import EmuConfig, SequenceConfig
from emu.data.dataset import derived_seed
from emu.data.dialogue import conversation, encoded, turns_of
from emu.models.objective import IGNORED, text_labels
from emu.tokenizer import EmuTokenizer
from schemas.sample import Sample, Segment

log = logging.getLogger(__name__)


class SequenceError(ValueError):
    """A sample that cannot become a sequence; names the sample and the reason."""


LENGTHS = (
    "pair_length",
    "window_length",
    "sampled_length",
    "clip_length",
    "storyboard_length",
)
"""The fields of a `SequenceConfig` that limit a format of pretraining."""
DIALOGUE_LENGTH = "dialogue_length"


@dataclass(frozen=True)
class Slot:
    """An image of a sequence: the index of its segment in the sample, and its encoded bytes."""

    segment: int
    image: bytes


Atom = int | Slot
"""The unit of cutting: a text token, or a whole image block."""


@dataclass(frozen=True)
class Sequence:
    """One row of a batch before padding or packing; the slots fill its image blocks in order."""

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
    """Makes the sequences of one model and one seed from samples of every corpus."""

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
        formats = () if model.adapter is not None else LENGTHS
        formats = (*formats, DIALOGUE_LENGTH) if model.instruct else formats
        self.lengths = {name: getattr(config, name) for name in formats}
        for name in self.lengths:
            self._check_length(name)

    def make(self, sample: Sample, epoch: int, shard: int = 0) -> Sequence:
        """The sequence of a sample in an epoch; raises `SequenceError` for samples that are not for this model."""
        if any(s.role is not None for s in sample.segments):
            return self._dialogue(sample, shard)
        if self.model.adapter is not None:
            raise SequenceError(
                f"sample '{sample.key}' of corpus '{sample.corpus}' has no roles; instruction tuning trains on "
                "dialogues, as emu build instruct writes them"
            )
        rng = Random(derived_seed("sequence", self.seed, epoch, sample.key))
        atoms = self._formatted(sample.segments, rng)
        return self._wrapped(sample.key, shard, [*atoms, self.model.special.eos])

    def _dialogue(self, sample: Sample, shard: int) -> Sequence:
        if not self.model.instruct:
            raise SequenceError(
                f"sample '{sample.key}' of corpus '{sample.corpus}' is a dialogue, and the model has no [USER] and "
                "[ASSISTANT]; emu train-instruct adds them and trains on dialogues"
            )
        if any(s.role is None for s in sample.segments):
            raise SequenceError(f"sample '{sample.key}': some segments have a role, others none")
        pairs = enumerate(sample.segments)
        slots = [Slot(n, s.image or b"") for n, s in pairs if s.kind == "image"]
        turns = turns_of(sample.segments, slots)
        marked = encoded(conversation(turns, is_closed=True), self.tokenizer)
        atoms = self._cut([m.atom for m in marked], 0, self.config.dialogue_length - 1, len(slots))
        answers = [m.is_answer for m in marked[: len(atoms)]]
        while answers and not answers[-1]:  # nothing is learned from what follows the last answer
            answers.pop()
        if not answers:
            log.warning(
                "sample %s: its first question takes all %d positions of dialogue_length, so no answer is learned",
                sample.key,
                self.config.dialogue_length,
            )
        return self._wrapped(sample.key, shard, atoms[: len(answers)], answers)

    def _formatted(self, segments: tuple[Segment, ...], rng: Random) -> list[Atom]:
        if any(segment.time_s is not None for segment in segments):
            has_timed_text = any(s.kind == "text" and s.time_s is not None for s in segments)
            form = self._storyboard if has_timed_text else self._clip
            return form(segments, rng)
        passages = passages_of(segments)
        if sorted(segment.kind for segment in segments) == ["image", "text"]:
            return self._pair(passages, rng)
        return self._interleaved(passages, rng)

    def _pair(self, passages: list[Passage], rng: Random) -> list[Atom]:
        text = " ".join(passage.text for passage in passages)
        slot = next(slot for passage in passages for slot in passage.slots)
        room = self.config.pair_length - 2 - self.block_length
        tokens: list[Atom] = [*self.tokenizer.encode_text(text.strip())[:room]]
        return [slot, *tokens] if self._image_first(rng) else [*tokens, slot]

    def _clip(self, segments: tuple[Segment, ...], rng: Random) -> list[Atom]:
        frames, texts = _by_time(segments)
        room = self.config.clip_length - 2
        number = min(self.config.clip_frames, len(frames), room // self.block_length)
        chosen: list[Atom] = [frames[i] for i in sorted(rng.sample(range(len(frames)), number))]
        tokens = self._encoded(texts)[: room - number * self.block_length]
        return [*chosen, *tokens] if self._image_first(rng) else [*tokens, *chosen]

    def _storyboard(self, segments: tuple[Segment, ...], rng: Random) -> list[Atom]:
        atoms: list[Atom] = []
        run: list[str] = []
        for number, segment in _in_order(segments):
            if segment.kind == "text":
                run.append((segment.text or "").strip())
            else:
                atoms += [*self._encoded(run), Slot(number, segment.image or b"")]
                run = []
        atoms += self._encoded(run)
        room = self.config.storyboard_length - 2
        return self._cut(atoms, self._start(atoms, room, rng), room, len(atoms))

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

    def _cut(
        self, atoms: list[Atom], start: int, room: int, max_images: int | None = None
    ) -> list[Atom]:
        """The atoms that fit into `room` positions from `start` on, with at most `max_images` images."""
        max_images = self.config.max_images if max_images is None else max_images
        taken: list[Atom] = []
        num_images = 0
        for atom in atoms[start:]:
            if isinstance(atom, Slot):
                if num_images == max_images:
                    continue
                num_images += 1
            room -= self._length(atom)
            if room < 0:
                break
            taken.append(atom)
        return taken

    def _wrapped(
        self, key: str, shard: int, atoms: list[Atom], answers: list[bool] | None = None
    ) -> Sequence:
        """The sequence of `<s>` and the atoms; with `answers` only those of them that are true are targets."""
        special = self.model.special
        block = [special.image_start, *[special.image] * (self.block_length - 2), special.image_end]
        ids = [special.bos]
        for atom in atoms:
            ids += block if isinstance(atom, Slot) else [atom]
        ids_L = torch.tensor(ids, dtype=torch.int64)
        labels_L = text_labels(ids_L, special, self.model.objective)
        if answers is not None:
            lengths = torch.tensor([1, *map(self._length, atoms)])
            is_answer_L = torch.tensor([False, *answers]).repeat_interleave(lengths)
            labels_L = labels_L.masked_fill(~is_answer_L, IGNORED)
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


def _by_time(segments: tuple[Segment, ...]) -> tuple[list[Slot], list[str]]:
    """The frames of a clip in order of time, and its texts."""
    ordered = _in_order(segments)
    frames = [Slot(n, segment.image or b"") for n, segment in ordered if segment.kind == "image"]
    return frames, [(s.text or "").strip() for s in segments if s.kind == "text"]


def _in_order(segments: tuple[Segment, ...]) -> list[tuple[int, Segment]]:
    """Segments with their numbers in order of time; a frame before a text of the same time.

    A segment without a time keeps the time of the one before it.
    """
    times: list[float] = []
    for segment in segments:
        before = times[-1] if times else 0.0
        times.append(before if segment.time_s is None else segment.time_s)
    order = sorted(range(len(segments)), key=lambda n: (times[n], segments[n].kind == "text", n))
    return [(number, segments[number]) for number in order]
