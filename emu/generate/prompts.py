"""Encodes prompts: texts and images in order, joined into one string that is tokenized once.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image
from torch import Tensor

from emu.config import IMAGE, IMAGE_START, EmuConfig, image_block
from emu.data.images import normalise
from emu.data.video import Video
from emu.generate.options import PromptTooLong
from emu.tokenizer import EmuTokenizer
from schemas.images import decode_image, to_rgb
from schemas.sample import Segment

Piece = str | bytes | Path | Image.Image | Tensor | Segment | Video
"""A `str` is always a text. Bytes (encoded), a path, a PIL image and a normalised `Tensor[3,H,W]`
are images. A segment is what it says, a video is its frames as images one after the other."""
Prompt = Piece | Sequence[Piece]
"""One piece, or a list or tuple of them, joined without a separator."""


def as_pieces(prompt: Prompt) -> list[Piece]:
    """The pieces of a prompt in order."""
    is_several = isinstance(prompt, list | tuple)
    return list(cast(Sequence[Piece], prompt)) if is_several else [cast(Piece, prompt)]


@dataclass(frozen=True)
class EncodedPrompt:
    """The ids of a prompt, image positions included, and its images in reading order."""

    ids: tuple[int, ...]
    pixels: tuple[Tensor, ...] = ()  # each float32 CHW, normalised
    text: str = (
        ""  # what was tokenized: the pieces joined, with image blocks, without the final [IMG]
    )


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts for one model: its tokenizer, positions per image, image size and limit."""

    tokenizer: EmuTokenizer
    config: EmuConfig

    def __call__(
        self, prompt: Prompt, opens_image: bool = False, num_reserved: int = 1
    ) -> EncodedPrompt:
        """The encoded prompt; with `opens_image` it ends in `[IMG]`, and an image follows.

        Special tokens that are written in a text become their ids (conversations need that), except
        `<image>`, whose positions belong to images. Raises `PromptTooLong` where fewer than
        `num_reserved` positions would be left for the reply.
        """
        pieces = as_pieces(prompt)
        self._check_images(sum(map(_num_images, pieces)))
        block = image_block(self.config.former.num_queries)
        texts: list[str] = []
        pixels: list[Tensor] = []
        for number, piece in enumerate(pieces):
            contents = piece.frames() if isinstance(piece, Video) else [piece]
            for content in (self._text_or_pixels(part, number) for part in contents):
                texts.append(content if isinstance(content, str) else block)
                if isinstance(content, Tensor):
                    pixels.append(content)
        return self.encode_joined("".join(texts), tuple(pixels), opens_image, num_reserved)

    def encode_joined(
        self,
        text: str,
        pixels: tuple[Tensor, ...],
        opens_image: bool = False,
        num_reserved: int = 1,
    ) -> EncodedPrompt:
        """The encoded prompt of one string that holds its image blocks; raises as the call does."""
        ids = self.tokenizer.encode(text + (IMAGE_START if opens_image else ""))
        self._check_length(len(ids), len(pixels), num_reserved)
        return EncodedPrompt(tuple(ids), pixels, text)

    def _text_or_pixels(self, piece: Piece, number: int) -> str | Tensor:
        if isinstance(piece, Segment):
            piece = (piece.text if piece.kind == "text" else piece.image) or ""
        if isinstance(piece, str):
            return self._checked_text(piece, number)
        if isinstance(piece, Tensor):
            return self._checked_pixels(piece, number)
        if isinstance(piece, bytes):
            image = decode_image(piece)
        elif isinstance(piece, Path):
            image = decode_image(piece.read_bytes())
        elif isinstance(piece, Image.Image):
            image = to_rgb(piece) if piece.width * piece.height else piece
        else:
            raise TypeError(
                f"piece {number} of the prompt is {type(piece).__name__}; give a str (text), an "
                "image as bytes, Path, PIL image or normalised tensor, or a Video"
            )
        if not image.width * image.height:
            size = f"{image.width} x {image.height}"
            raise ValueError(f"piece {number} of the prompt is an image of {size} pixels")
        return normalise(image, self.config.vision.image_size)

    def _checked_text(self, text: str, number: int) -> str:
        if IMAGE in text:
            raise ValueError(
                f"piece {number} of the prompt writes the token {IMAGE} in a text; "
                "give the image itself as a piece of its own"
            )
        return text

    def _checked_pixels(self, pixels: Tensor, number: int) -> Tensor:
        side = self.config.vision.image_size
        if tuple(pixels.shape) != (3, side, side):
            raise ValueError(
                f"piece {number} of the prompt is a tensor of shape {tuple(pixels.shape)}, "
                f"the model takes normalised images of (3, {side}, {side})"
            )
        if not pixels.is_floating_point():
            raise ValueError(
                f"piece {number} of the prompt is a tensor of {pixels.dtype}; give normalised "
                "floats (emu.data.images.normalise), or the image itself"
            )
        if not pixels.isfinite().all():
            raise ValueError(f"piece {number} of the prompt is a tensor that holds nan or inf")
        return pixels.float()

    def _check_images(self, num_images: int) -> None:
        """Raises `PromptTooLong` for too many images before any of them is decoded."""
        self._check_length(num_images * (self.config.former.num_queries + 2), num_images, 1)

    def _check_length(self, num_ids: int, num_images: int, num_reserved: int) -> None:
        limit = self.config.language.max_positions
        if num_ids + num_reserved > limit:
            per_image = self.config.former.num_queries + 2
            images = "1 image" if num_images == 1 else f"{num_images} images"
            raise PromptTooLong(
                f"the prompt takes {num_ids} positions ({images} at {per_image} each) and "
                f"the reply at least {num_reserved}, the model has {limit}; shorten the prompt"
            )


def _num_images(piece: Piece) -> int:
    if isinstance(piece, Segment):
        return int(piece.kind != "text")
    return piece.num_frames if isinstance(piece, Video) else int(not isinstance(piece, str))
