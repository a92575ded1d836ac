"""The images of a dataset with their prompts, for the training of the visual decoder.

The prompt of an image is the text that follows it in the sample. Images without one, prompts longer than the paper's
limit and prompts that contain a special token are left out and counted.

Shapes: N images, C channels, H W pixels, Q causal queries, D language width.
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
from emu.recipes import PromptRules
from schemas.images import ImageError, decode_image
from schemas.sample import Sample

NO_TEXT, TOO_LONG, SPECIAL_TOKEN = "no_text", "prompt_too_long", "special_token_in_prompt"
_SPECIAL = re.compile("|".join(re.escape(token) for token in INSTRUCT_TOKENS))


@dataclass(frozen=True)
class PromptedImages:
    """Images `pixels_NCHW` (uint8) and the prompt of each; how many were left out, by reason."""

    pixels_NCHW: Tensor
    prompts: tuple[str, ...]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.prompts)


def read_images(data: str, side: int, rules: PromptRules) -> PromptedImages:
    """The first images of a dataset that the rules accept, resized to `side` x `side` without regard to aspect.

    Raises `DatasetError` where none is left and `ImageError`, naming the sample, for one that cannot be decoded.
    """
    reader = ShardReader(data, seed=0, shuffle=False)
    images: list[Tensor] = []
    prompts: list[str] = []
    left_out: dict[str, int] = {}
    for index in range(len(reader)):
        sample = reader.visit(index).sample
        for image, prompt in prompted(sample):
            reason = why_left_out(prompt, rules)
            if reason is None:
                images.append(_pixels(sample.key, image, side))
                prompts.append(prompt)
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
            if len(prompts) == rules.max_images:
                return PromptedImages(torch.stack(images), tuple(prompts), left_out)
    if not images:
        raise DatasetError(f"{data}: no image has a prompt to learn from; left out: {left_out}")
    return PromptedImages(torch.stack(images), tuple(prompts), left_out)


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
    """The conditions `UQD` of the distinct prompts, and for each of the N prompts its row in them.

    The frozen model regresses them embedding by embedding; `advance` is called with the number of prompts done.
    """
    texts = sorted(dict.fromkeys(prompts), key=len)  # prompts of one length need no padding
    conditions: list[Tensor] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        conditions.append(engine.regress_image(batch).float().cpu())
        advance(len(batch))
    row_of = {text: row for row, text in enumerate(texts)}
    return torch.cat(conditions).clone(), torch.tensor([row_of[prompt] for prompt in prompts])


def _pixels(key: str, image: bytes, side: int) -> Tensor:
    try:
        resized = decode_image(image).resize((side, side), Image.Resampling.BICUBIC)
    except ImageError as error:
        raise error.at(f"sample '{key}'") from error
    return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())
