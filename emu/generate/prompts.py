"""What goes into the engine and what comes out: prompts, options, replies. Light to import: no torch.

A prompt is texts and images in order, joined into one string that is tokenized once.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, cast

from PIL import Image
from pydantic import Field

from emu.config import IMAGE, IMAGE_START, EmuConfig, image_block
from emu.data.video import Video
from emu.tokenizer import EmuTokenizer
from schemas.images import decode_image, to_rgb
from schemas.sample import Segment
from schemas.validation import Checked, ConfigError

if TYPE_CHECKING:
    from torch import Tensor  # the ingress of the server imports this module and not torch

MAX_SIDE = 4096
"""Pixels of a generated image along one side: eight times what Stable Diffusion was trained on."""

MAX_LOGPROBS = 20
"""Likeliest tokens per position, as in OpenAI's API."""

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="the seeds of torch")]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE, description="pixels")]


class PromptTooLong(ValueError):
    """A prompt that leaves the model no position for its reply."""


class NegativePromptTooLong(PromptTooLong):
    """A negative prompt that leaves the model no positions for the embeddings of an image."""


@dataclass(frozen=True)
class TextOptions(Checked):
    """How text is decoded: greedily by default. Beam search and sampling exclude each other."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Maximum number of new tokens; the model's last position is a limit, too."""
    min_length: Annotated[int, Field(ge=0)] = 0
    """Ids before the end token is allowed, the start id included, as in the released code."""
    num_beams: Annotated[int, Field(ge=1)] = 1
    """Beams of a beam search (the released evaluation uses 5); 1 is no search."""
    length_penalty: float = 1.0
    """Exponent of the length by which the score of a beam is divided; below 0 favours short texts."""
    do_sample: bool = False
    """Sample from the distribution instead of taking the likeliest token."""
    temperature: Annotated[
        float, Field(gt=0, description="do_sample=False takes the likeliest token")
    ] = 1.0
    """Divides the logits before a token is sampled."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    seed: Seed = 0
    """Of the sampler; row i of a batch uses `seed + i`, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """The text ends before the first occurrence of any of these strings."""
    num_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Give the log-probability of each new token, and of so many likeliest ones; None gives none."""
    prompt_logprobs: bool = False
    """Give them for the tokens of the prompt as well; the prompt then reads no pages of others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_logprobs and self.num_logprobs is None:
            raise ConfigError("prompt_logprobs is True with num_logprobs None, give 0 or more")
        if self.num_logprobs is not None and self.num_beams > 1:
            raise ConfigError(
                f"num_logprobs is {self.num_logprobs} with num_beams {self.num_beams}; a beam search "
                "has no log-probability of single tokens"
            )
        if self.do_sample and self.num_beams > 1:
            raise ConfigError(
                f"do_sample is True with num_beams {self.num_beams}, give one or the other"
            )
        if "" in self.stop:
            raise ConfigError(
                f"stop is {self.stop!r}, and an empty string would end every text at once"
            )


@dataclass(frozen=True)
class ImageOptions(Checked):
    """How an image is generated; the defaults are those of the released pipeline."""

    height: Side | None = None
    """In pixels; by default what the visual decoder was trained on."""
    width: Side | None = None
    """In pixels; by default what the visual decoder was trained on."""
    num_inference_steps: Annotated[int, Field(ge=1)] = 50
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5
    """Weight of the prompt against the negative prompt; 1 is no guidance."""
    seed: Seed = 0
    """Of the initial noise: the same seed gives the same image."""
    scheduler: str | None = None
    """The diffusion scheduler, by name; None is the visual decoder's first ("pndm" of Stable Diffusion)."""
    negative_prompt: str = ""
    """What guidance leads away from: the text whose regressed embeddings take the place of the empty prompt's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if IMAGE in self.negative_prompt:
            raise ConfigError(
                f"negative_prompt is {self.negative_prompt!r}, give a text without {IMAGE}"
            )


FinishReason = Literal["stop", "length", "image"]
"""`stop`: the end token or a stop string; `length`: a limit; `image`: a token that opens an image, which ends one
text inside a reply and never the reply."""


@dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability in nats, as the model gives it: before temperature, top_p and min_length."""

    token: int
    text: str
    """The token on its own (`EmuTokenizer.piece`)."""
    logprob: float | None
    """None for the first position of a prompt and for the positions of images, which nothing predicts."""
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens at its position: id, text, log-probability."""


@dataclass(frozen=True)
class ImagePosition:
    """Image `number` of the reply stands here; its pixels follow later, as a `DecodedImage`."""

    number: int


@dataclass(frozen=True)
class DecodedImage:
    """Image `number`: the segment that the whole reply has as well."""

    number: int
    segment: Segment


@dataclass(frozen=True)
class Reply:
    """The segments of a reply in order, why it ended, and how many positions it took."""

    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int  # positions of the prompt, those of images included
    num_reply_tokens: int  # positions of the reply, those of images included
    scores: tuple[TokenScore, ...] = ()
    """Of the new tokens of all texts, with `TextOptions.num_logprobs`."""
    prompt_scores: tuple[TokenScore, ...] = ()
    """Of the positions of the prompt, with `TextOptions.prompt_logprobs`."""

    @property
    def text(self) -> str:
        """All texts of the reply, joined."""
        return "".join(s.text or "" for s in self.segments if s.kind == "text")

    @property
    def images(self) -> tuple[Segment, ...]:
        """The images of the reply, encoded as PNG."""
        return tuple(s for s in self.segments if s.kind == "image")


Piece: TypeAlias = "str | bytes | Path | Image.Image | Tensor | Segment | Video"
"""A `str` is always a text. Bytes (encoded), a path, a PIL image and a normalised `Tensor[3,H,W]`
are images. A segment is what it says, a video is its frames as images one after the other."""
Prompt: TypeAlias = "Piece | Sequence[Piece]"
"""One piece, or a list or tuple of them, joined without a separator."""


def as_pieces(prompt: Prompt) -> list[Piece]:
    """The pieces of a prompt in order."""
    is_several = isinstance(prompt, list | tuple)
    return list(cast("Sequence[Piece]", prompt)) if is_several else [cast("Piece", prompt)]


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
        self, prompt: Prompt | EncodedPrompt, opens_image: bool = False, num_reserved: int = 1
    ) -> EncodedPrompt:
        """The encoded prompt; with `opens_image` it ends in `[IMG]`, and an image follows.

        One that is encoded already stays as it is, but for its `[IMG]`.

        Special tokens that are written in a text become their ids (conversations need that), except
        `<image>`, whose positions belong to images. Raises `PromptTooLong` where fewer than
        `num_reserved` positions would be left for the reply.
        """
        if isinstance(prompt, EncodedPrompt):
            opening = (self.config.special.image_start,) if opens_image else ()
            self._check_length(len(prompt.ids + opening), len(prompt.pixels), num_reserved)
            return replace(prompt, ids=prompt.ids + opening)
        pieces = as_pieces(prompt)
        self._check_images(sum(map(_num_images, pieces)))
        block = image_block(self.config.former.num_queries)
        texts: list[str] = []
        pixels: list[Tensor] = []
        for number, piece in enumerate(pieces):
            contents = piece.frames() if isinstance(piece, Video) else [piece]
            for content in (self._text_or_pixels(part, number) for part in contents):
                texts.append(content if isinstance(content, str) else block)
                if not isinstance(content, str):
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
        from torch import Tensor

        from emu.models.visual import normalise

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
                "floats (emu.models.visual.normalise), or the image itself"
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
