"""What a caller may ask of text and of pictures, checked when it is asked.

What the model answers: segments in order, why the answer ended, and what it took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from schemas.sample import Segment


class PromptTooLong(ValueError):
    """A prompt that leaves the model no position to answer in."""


MAX_SIDE = 4096
"""Pixels of a drawn picture along one side: eight times what Stable Diffusion was trained on."""


@dataclass(frozen=True)
class TextOptions:
    """How text is chosen. The plain default is greedy; beams and sampling exclude each other."""

    max_new_tokens: int = 64
    """The longest answer in tokens; the end of the model's positions ends it too."""
    min_length: int = 0
    """Ids before the end token may come, the start id counted, as in the released code."""
    num_beams: int = 1
    """Beams of a beam search (the released code uses 5); 1 is no search."""
    length_penalty: float = 1.0
    """Exponent of the length by which the score of a beam is divided; below 0 favours short."""
    do_sample: bool = False
    """Draw from the distribution instead of taking its top."""
    temperature: float = 1.0
    """Divides the logits before a draw."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together hold this probability."""
    seed: int = 0
    """Of the draws; row i of a batch draws with seed + i, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""

    def __post_init__(self) -> None:
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("min_length", self.min_length, 0)
        _at_least("num_beams", self.num_beams, 1)
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"do_sample with num_beams={self.num_beams}; give one or the other")
        _number("temperature", self.temperature)
        _number("top_p", self.top_p)
        _number("length_penalty", self.length_penalty)
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}, give a number above 0 "
                "(or do_sample=False for the most likely token)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, give 0 < top_p <= 1")
        if not -math.inf < self.length_penalty < math.inf:
            raise ValueError(f"length_penalty is {self.length_penalty}, give a finite number")
        _in_seeds("seed", self.seed)
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the string {self.stop!r}, give a tuple of strings")
        if not all(isinstance(text, str) for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}, give a tuple of strings")
        if "" in self.stop:
            raise ValueError("stop holds an empty string, which would end every text at once")


@dataclass(frozen=True)
class ImageOptions:
    """How a picture is drawn; the defaults are those of the released pipeline."""

    height: int | None = None
    """In pixels; by default what the visual decoder was trained on."""
    width: int | None = None
    """In pixels; by default what the visual decoder was trained on."""
    num_inference_steps: int = 50
    """Denoising steps: more take longer."""
    guidance_scale: float = 7.5
    """Weight of the prompt against the empty prompt; 1 is no guidance."""
    seed: int = 0
    """Of the initial noise: the same seed, the same picture."""
    scheduler: str = "pndm"
    """The sampler of the diffusion, by name."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
                if getattr(self, name) > MAX_SIDE:
                    raise ValueError(f"{name} is {getattr(self, name)}, give at most {MAX_SIDE}")
        _at_least("num_inference_steps", self.num_inference_steps, 1)
        _in_seeds("seed", self.seed)
        _number("guidance_scale", self.guidance_scale)
        if not 0 <= self.guidance_scale <= 100:
            raise ValueError(f"guidance_scale is {self.guidance_scale}, give 0 to 100")


def _at_least(name: str, value: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < limit:
        raise ValueError(f"{name} is {value!r}, give a whole number of at least {limit}")


def _number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, give a number")


def _in_seeds(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value!r}, give a whole number from -2**63 to 2**63 - 1")


FinishReason = Literal["stop", "length", "image"]
"""`stop`: the end token or a stop string; `length`: a limit; `image`: a token that opens an image,
which ends one text inside a reply and never the reply."""


@dataclass(frozen=True)
class Reply:
    """What the model answered, in order, and what it took."""

    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int  # positions of the prompt, those of images included
    num_reply_tokens: int  # positions of the answer, those of images included

    @property
    def text(self) -> str:
        """All texts of the reply, joined."""
        return "".join(s.text or "" for s in self.segments if s.kind == "text")

    @property
    def images(self) -> tuple[Segment, ...]:
        """The pictures of the reply, encoded as PNG."""
        return tuple(s for s in self.segments if s.kind == "image")
