"""Options of the engine from the fields of requests, the same for chats, plain completions and images."""

from __future__ import annotations

import secrets
from dataclasses import replace

from emu.generate.prompts import ImageOptions, TextOptions
from emu.serve.backend import GenerationRequest
from emu.serve.limits import Limits
from emu.serve.schema import ImageRequest, TextRequest

SEED_BITS = 62  # so that the seeds of several choices stay in the range of 64 bits with a sign


def seed_of(given: int | None) -> int:
    """The seed of a request; without one every call samples anew."""
    return secrets.randbits(SEED_BITS) if given is None else given


def text_options(
    request: TextRequest, limits: Limits, seed: int = 0, num_beams: int = 1
) -> TextOptions:
    """Greedy unless the temperature is above 0."""
    default = min(request.default_max_tokens, limits.max_tokens)
    return TextOptions(
        max_new_tokens=default if request.num_tokens is None else max(request.num_tokens, 1),
        num_beams=num_beams,
        min_length=request.min_length,
        do_sample=bool(request.temperature),
        temperature=request.temperature or 1.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=seed,
        stop=request.stops,
        num_logprobs=request.num_logprobs,
        prompt_logprobs=request.scores_prompt,
    )


def image_options(image: ImageRequest, seed: int = 0, negative_prompt: str = "") -> ImageOptions:
    """The options of a generated image; the negative prompt as the engine takes it."""
    return ImageOptions(
        height=image.height,
        width=image.width,
        num_inference_steps=image.num_inference_steps,
        guidance_scale=image.guidance_scale,
        seed=seed,
        scheduler=image.scheduler,
        negative_prompt=negative_prompt,
    )


def choices_of(request: GenerationRequest, number: int | None) -> list[GenerationRequest]:
    """The requests of `n` replies: each has the seed after that of the one before."""
    later = [
        replace(
            request,
            text=request.text and replace(request.text, seed=_later(request.text.seed, index)),
            image=replace(request.image, seed=_later(request.image.seed, index)),
        )
        for index in range(1, number or 1)
    ]
    return [request, *later]


def _later(seed: int, steps: int) -> int:
    """The seed so many steps on, in the range of 64 bits with a sign."""
    return (seed + steps + 2**63) % 2**64 - 2**63
