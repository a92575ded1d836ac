"""The pictures of a dataset with their prompts, as the visual decoder trains on them.

A picture's prompt is its sentence: the text that follows it in the sample. Left out, and counted, are
pictures without one, prompts longer than the paper's limit, and prompts that write a special token.

Shapes: N pictures, C channels, H W pixels, Q causal queries, D language width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu.config import INSTRUCT_TOKENS
from emu.data.dataset import DatasetError, ShardReader
from emu.data.sequence import passages_of
from emu.generate.engine import Engine
from schemas.images import ImageError, decode_image
from schemas.sample import Sample

NO_TEXT, TOO_LONG, SPECIAL_TOKEN = "no_text", "prompt_too_long", "special_token_in_prompt"
_SPECIAL = re.compile("|".join(re.escape(token) for token in INSTRUCT_TOKENS))


@dataclass(frozen=True)
class PromptRules:
    """Which pictures the visual decoder trains on."""

    max_prompt_length: int = 150
    """Characters of a prompt at most; pictures with longer ones are left out (paper: 150)."""
    max_pictures: int = 20_000
    """Pictures taken from the dataset at most: they are held in memory, decoded."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_length", "max_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give at least 1")


@dataclass(frozen=True)
class PromptedPictures:
    """Pictures `pixels_NCHW` (uint8) and the prompt of each; how many were left out, by reason."""

    pixels_NCHW: Tensor
    prompts: tuple[str, ...]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.prompts)


def read_pictures(data: str, side: int, rules: PromptRules) -> PromptedPictures:
    """The first pictures of a dataset that the rules admit, squashed to `side` x `side`.

    Raises `DatasetError` where none is left and `ImageError`, naming the sample, for one that does not
    decode.
    """
    reader = ShardReader(data, seed=0, shuffle=False)
    pictures: list[Tensor] = []
    prompts: list[str] = []
    left_out: dict[str, int] = {}
    for place in range(len(reader)):
        sample = reader.visit(place).sample
        for image, prompt in prompted(sample):
            reason = why_left_out(prompt, rules)
            if reason is None:
                pictures.append(_pixels(sample.key, image, side))
                prompts.append(prompt)
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
            if len(prompts) == rules.max_pictures:
                return PromptedPictures(torch.stack(pictures), tuple(prompts), left_out)
    if not pictures:
        raise DatasetError(f"{data}: no picture has a prompt to learn from; left out: {left_out}")
    return PromptedPictures(torch.stack(pictures), tuple(prompts), left_out)


def prompted(sample: Sample) -> Iterator[tuple[bytes, str]]:
    """The encoded images of a sample, each with the text that follows it, which may be empty."""
    for passage in passages_of(sample.segments):
        for slot in passage.slots:
            yield slot.image, passage.text


def why_left_out(prompt: str, rules: PromptRules) -> str | None:
    """The reason why a prompt is not trained on; None where it is."""
    if not prompt:
        return NO_TEXT
    if len(prompt) > rules.max_prompt_length:
        return TOO_LONG
    return SPECIAL_TOKEN if _SPECIAL.search(prompt) else None


def regress_conditions(
    engine: Engine,
    prompts: tuple[str, ...],
    batch_size: int,
    advance: Callable[[int], None] = lambda number: None,
) -> tuple[Tensor, Tensor]:
    """The conditions of the prompts, each once: `UQD`, and the row `N` of every prompt in them.

    They are regressed one embedding after the other by the model as it is; `advance` is told how many
    prompts are done.
    """
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    texts = sorted(rows, key=len)  # prompts of one length need no padding
    conditions: list[Tensor] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        conditions.append(engine.regress_image(batch).float().cpu())
        advance(len(batch))
    places = {text: place for place, text in enumerate(texts)}
    return torch.cat(conditions).clone(), torch.tensor([places[prompt] for prompt in prompts])


def _pixels(key: str, image: bytes, side: int) -> Tensor:
    try:
        squashed = decode_image(image).resize((side, side), Image.Resampling.BICUBIC)
    except ImageError as error:
        raise error.at(f"sample '{key}'") from error
    return torch.from_numpy(np.asarray(squashed).transpose(2, 0, 1).copy())
