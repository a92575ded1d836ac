"""What a caller may ask of texts and images, and what comes back. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from schemas.config import Checked, ConfigError
from schemas.sample import Segment

MAX_SIDE = 4096
"""Pixels of a generated image along one side: eight times what Stable Diffusion was trained on."""

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="the seeds of torch")]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE, description="pixels")]


class PromptTooLong(ValueError):
    """A prompt that leaves the model no position for its reply."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
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
    """Weight of the prompt against the empty prompt; 1 is no guidance."""
    seed: Seed = 0
    """Of the initial noise: the same seed gives the same image."""
    scheduler: str | None = None
    """The diffusion scheduler, by name; None is the visual decoder's first ("pndm" of Stable Diffusion)."""


FinishReason = Literal["stop", "length", "image"]
"""`stop`: the end token or a stop string; `length`: a limit; `image`: a token that opens an image, which ends one
text inside a reply and never the reply."""


@dataclass(frozen=True)
class Reply:
    """The segments of a reply in order, why it ended, and how many positions it took."""

    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int  # positions of the prompt, those of images included
    num_reply_tokens: int  # positions of the reply, those of images included

    @property
    def text(self) -> str:
        """All texts of the reply, joined."""
        return "".join(s.text or "" for s in self.segments if s.kind == "text")

    @property
    def images(self) -> tuple[Segment, ...]:
        """The images of the reply, encoded as PNG."""
        return tuple(s for s in self.segments if s.kind == "image")
