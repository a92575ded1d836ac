"""Sequences with the lengths of the paper's formats, and random words."""

from random import Random

import torch

from emu.config import EmuConfig
from emu.data.sequence import Sequence, Slot
from emu.models.objective import text_labels

KINDS = {"pair": 256, "window": 32, "sampled": 32, "clip": 16, "storyboard": 16}
"""Formats, and the paper's sequences of each: two corpora of 128 pairs, 64 documents of two samplings, 16, 16."""


def paper_sequence(
    kind: str, config: EmuConfig, dice: Random, max_length: int | None = None
) -> Sequence:
    """A sequence of a format with empty images, `max_length` positions at most. Web documents are mostly short."""
    document = min(1024, round(dice.lognormvariate(5.9, 0.8)))
    words, images = {
        "pair": (dice.randint(8, 40), 1),
        "window": (max(20, document - 34 * 2), 2),
        "sampled": (dice.randint(40, 300), dice.randint(1, 5)),
        "clip": (dice.randint(8, 40), 8),
        "storyboard": (dice.randint(100, 500), dice.randint(4, 14)),
    }[kind]
    special, queries = config.special, config.former.num_queries
    if max_length is not None:
        images = max(1, min(images, (max_length // 2) // (queries + 2)))
        words = min(words, max_length - 2 - images * (queries + 2))
    block = [special.image_start, *[special.image] * queries, special.image_end]
    text = [dice.randrange(3, special.pad) for _ in range(words)]
    ids = [special.bos]
    for number in range(images):
        ids += text[number * words // images : (number + 1) * words // images] + block
    ids_L = torch.tensor([*ids, special.eos])
    slots = tuple(Slot(number, b"") for number in range(images))
    return Sequence(kind, 0, ids_L, text_labels(ids_L, special, config.objective), slots)
