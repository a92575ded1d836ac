"""`POST /v1/images/generations` and `/v1/images/edits`: an image from a text, or from images and a text.

An edit is a prompt of images followed by a text: Emu generates in context (blending, "the same at night"), it has no
masks. `size` is `WIDTHxHEIGHT` in multiples of the decoder's downscaling, or `auto`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from emu.serve.backend import Content, EncodedImage, GenerationRequest
from emu.serve.bodies import Form
from emu.serve.errors import ApiError, shown
from emu.serve.fields import COMMON_IGNORED, Neutral, Seed, Strict, check_limit, parse_fields
from emu.serve.media import PixelCount, check_number
from emu.serve.openapi import form_body, json_body
from emu.serve.replies import encoded
from emu.serve.requests import (
    Turn,
    check_generates_images,
    check_image_limits,
    check_positions,
    check_text,
    negative_prompt,
    to_prompt,
)
from emu.serve.sampling import choices_of, image_options, seed_of
from emu.serve.schema import ImageRequest
from emu.serve.server import Answer, Server

SIZE = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
NEUTRAL: Neutral = {
    "background": ("auto", "opaque", None),
    "complexity": (None,),
    "frame_count": (1, None),
    "frame_duration_ms": (None,),
    "input_fidelity": ("high", "low", None),
    "markup": (None,),
    "mask": (None,),
    "moderation": ("auto", "low", None),
    "output_compression": (100, None),
    "output_format": ("png", None),
    "partial_images": (0, None),
    "response_format": ("b64_json", None),
    "stream": (False, None),
    "style": ("natural", "vivid", None),
    "svg": (None,),
}
IGNORED = (*COMMON_IGNORED, "quality")
NEGATIVE = "negative_prompt"
FILES = ("image", "image[]")
NUMBERS = ("n", "seed", "guidance_scale", "num_inference_steps", "output_compression")
"""Fields of a form that are numbers; a form holds texts."""


class GenerateImage(Strict):
    """The body of `POST /v1/images/generations`, and the fields of an edit beside its images."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int | None = Field(default=None, ge=1)
    size: str | None = None
    seed: Seed | None = None
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=7.5, ge=0, le=100)
    scheduler: str | None = None
    negative_prompt: str | None = None

    @property
    def image(self) -> ImageRequest:
        """How the image is generated; raises `ApiError` for a size that is none."""
        width = height = None
        if self.size not in (None, "auto"):
            match = SIZE.fullmatch(self.size)
            if match is None:
                message = f'size is {shown(self.size)}, give "auto" or a size such as "512x512"'
                raise ApiError(400, message, "size", "invalid_value")
            width, height = int(match[1]), int(match[2])
        return ImageRequest(
            height=height,
            width=width,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            negative_prompt=self.negative_prompt,
        )


KNOWN = {"": [*GenerateImage.model_fields, *NEUTRAL, *IGNORED]}


def router(server: Server) -> APIRouter:
    """The routes of images."""
    routes = APIRouter()

    @routes.post("/v1/images/generations", openapi_extra=json_body(GenerateImage))
    async def generate(http: Request) -> Response:
        """Images from a text."""
        request = _parsed(await server.json(http))
        return await answer(http, request, ())

    file = {"type": "array", "items": {"type": "string", "format": "binary"}}

    @routes.post("/v1/images/edits", openapi_extra=form_body(GenerateImage, {"image": file}))
    async def edit(http: Request) -> Response:
        """Images from one or several images and a text."""
        form = await server.form(http)
        request = _parsed(_form_fields(form))
        return await answer(http, request, await _form_images(form, server))

    async def answer(
        http: Request, request: GenerateImage, images: Sequence[EncodedImage]
    ) -> Response:
        timer = server.timer()
        works = read_image_request(request, images, server)
        answers = await server.answers(http, works, timer)
        seeds = [work.image.seed for work in works]
        num_image_tokens = len(images) * (server.card.config.former.num_queries + 2)
        return JSONResponse(_response(answers, seeds, int(server.now()), num_image_tokens))

    return routes


def _parsed(body: Any) -> GenerateImage:
    return parse_fields(GenerateImage, body, KNOWN, IGNORED, NEUTRAL, '{"prompt": "…"}')


def read_image_request(
    request: GenerateImage, images: Sequence[EncodedImage], server: Server
) -> list[GenerationRequest]:
    """The requests of the engine, one for each image; raises `ApiError`."""
    card, limits = server.card, server.limits
    adapter = server.adapter(request.model)
    check_generates_images(card, "model")
    check_limit("n", request.n or 1, limits.max_choices)
    image = request.image
    _check_size(request, image, server)
    content: Content = (*images, check_text(request.prompt, "prompt"))
    prompt = to_prompt([Turn("user", content)], card.uses_dialogue(adapter))
    check_positions(prompt, card, "prompt")
    negative = negative_prompt(image, card, adapter, NEGATIVE)
    options = image_options(image, seed_of(request.seed), negative)
    work = GenerationRequest(prompt, None, options, True, (), "prompt", adapter, NEGATIVE)
    return choices_of(work, request.n)


def _check_size(request: GenerateImage, image: ImageRequest, server: Server) -> None:
    """Raises `ApiError` with the field of this route for a size, number of steps or scheduler that is not possible."""
    try:
        check_image_limits(image, server.card, server.limits, "")
    except ApiError as error:
        found = error.response
        if found.param not in ("height", "width"):
            raise
        message = f"size is {shown(request.size)}: {found.message}"
        raise ApiError(found.status, message, "size", found.code) from error


def _form_fields(form: Form) -> dict[str, Any]:
    """The texts of a form as the values of a JSON body."""
    fields: dict[str, Any] = dict(form.texts)
    for name in NUMBERS:
        if name in fields:
            fields[name] = _number(fields[name])
    if "stream" in fields:
        fields["stream"] = {"false": False, "true": True}.get(fields["stream"], fields["stream"])
    for name, _ in form.files:
        if name not in FILES:
            fields[name] = "a file"
    return fields


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


async def _form_images(form: Form, server: Server) -> list[EncodedImage]:
    """The images of a form, checked by their headers; raises `ApiError`."""
    images = [data for name, data in form.files if name in FILES]
    if not images:
        raise ApiError(400, "image is missing; send one or several files", "image", "missing")
    check_number(len(images), server.limits, "image")
    pixels = PixelCount(server.limits)

    def check() -> list[EncodedImage]:
        return [pixels.checked(data, f"image.{number}") for number, data in enumerate(images)]

    return await asyncio.to_thread(check)


def _response(
    answers: Sequence[Answer], seeds: Sequence[int], created: int, num_image_tokens: int
) -> dict[str, Any]:
    replies = [answer.reply for answer in answers]
    num_prompt = replies[0].num_prompt_tokens
    num_reply = sum(reply.num_reply_tokens for reply in replies)
    segment = answers[0].images[0]
    return {
        "created": created,
        "data": [
            {"b64_json": encoded(answer.images[0]), "seed": seed}
            for answer, seed in zip(answers, seeds, strict=True)
        ],
        "output_format": "png",
        "size": f"{segment.width}x{segment.height}",
        "usage": {
            "input_tokens": num_prompt,
            "output_tokens": num_reply,
            "total_tokens": num_prompt + num_reply,
            "input_tokens_details": {
                "image_tokens": num_image_tokens,
                "text_tokens": num_prompt - num_image_tokens,
            },
        },
    }
