"""A parsed request to work for the engine: limits held, images brought in, messages made a prompt."""

from __future__ import annotations

import asyncio

from emu.generate.options import ImageOptions, TextOptions
from emu.serve.body import shown
from emu.serve.content import Fetch, check_picture, data_of_url, fetched, is_web_url
from emu.serve.dialogue import Picture, Turn, check_text, to_prompt
from emu.serve.errors import refuse
from emu.serve.limits import Limits
from emu.serve.schema import DEFAULT_MAX_TOKENS, ChatRequest, ImagePart, Message
from emu.serve.work import ModelCard, Work

MAX_STOPS = 4  # OpenAI's
MAX_STOP_LENGTH = 1000  # characters; a stop string is looked for after every token


async def read_work(
    request: ChatRequest, card: ModelCard, limits: Limits, fetch: Fetch | None
) -> Work:
    """The work of a request; raises `ApiError` naming the field, its value and the limit."""
    check_limits(request, card, limits)
    urls = image_urls(request)
    if len(urls) > limits.max_images:
        message = f"the messages hold {len(urls)} images, the limit is {limits.max_images}"
        raise refuse(413, message, "messages", "too_many_images")
    pictures = await asyncio.to_thread(read_pictures, urls, limits, fetch)
    turns = [to_turn(m, f"messages.{i}", pictures) for i, m in enumerate(request.messages)]
    return Work(
        prompt=to_prompt(turns, card.config.instruct),
        text=text_options(request, limits) if request.asks_text else None,
        image=image_options(request),
        asks_image=request.asks_image,
    )


def check_limits(request: ChatRequest, card: ModelCard, limits: Limits) -> None:
    """Raises `ApiError` for the first field beyond its limit, or that does not go with another."""
    bounds = (
        ("max_tokens", request.max_tokens or 1, limits.max_tokens),
        ("max_completion_tokens", request.max_completion_tokens or 1, limits.max_tokens),
        ("num_beams", request.num_beams, limits.max_beams),
        ("image.height", request.image.height or 1, limits.max_side),
        ("image.width", request.image.width or 1, limits.max_side),
        ("image.num_inference_steps", request.image.num_inference_steps, limits.max_steps),
    )
    for param, value, limit in bounds:
        if value > limit:
            raise refuse(400, f"{param} is {value}, the limit is {limit}", param, "above_limit")
    _check_stops(request)
    _check_choices(request)
    if request.asks_image and not card.draws:
        message = f"the model {card.name!r} has no visual decoder and draws no images"
        raise refuse(400, message, "modalities", "invalid_value")
    for side in ("height", "width"):
        value = getattr(request.image, side)
        if card.picture_factor and value is not None and value % card.picture_factor:
            message = f"image.{side} is {value}, give a multiple of {card.picture_factor}"
            raise refuse(400, message, f"image.{side}", "invalid_value")


def _check_stops(request: ChatRequest) -> None:
    if len(request.stops) > MAX_STOPS:
        message = f"stop holds {len(request.stops)} strings, the limit is {MAX_STOPS}"
        raise refuse(400, message, "stop", "above_limit")
    for number, stop in enumerate(request.stops):
        param = "stop" if isinstance(request.stop, str) else f"stop.{number}"
        if not stop:
            message = (
                f'{param} is "", which would end every text at once; give at least one character'
            )
            raise refuse(400, message, param, "invalid_value")
        if len(stop) > MAX_STOP_LENGTH:
            message = f"{param} has {len(stop):,} characters, the limit is {MAX_STOP_LENGTH:,}"
            raise refuse(400, message, param, "above_limit")


def _check_choices(request: ChatRequest) -> None:
    """Raises `ApiError` for fields that do not go together."""
    tokens, completion = request.max_tokens, request.max_completion_tokens
    if tokens and completion:
        message = f"max_tokens is {tokens} and max_completion_tokens {completion}, give one of them"
        raise refuse(400, message, "max_tokens", "invalid_value")
    if request.num_beams > 1 and (request.temperature or request.stream):
        other = f"temperature {request.temperature:g}" if request.temperature else "stream true"
        message = f"num_beams is {request.num_beams} and {other}: give one or the other"
        raise refuse(400, message, "num_beams", "invalid_value")
    if request.stream_options is not None and not request.stream:
        message = "stream_options is given without stream: give stream true, or leave it out"
        raise refuse(400, message, "stream_options", "invalid_value")
    if request.asks_image and request.stream:
        message = f"stream is true with modalities {shown(request.modalities)}: a stream carries text only"
        raise refuse(400, message, "stream", "invalid_value")


def image_urls(request: ChatRequest) -> list[tuple[str, str]]:
    """The images of all messages in order: the field and the URL."""
    return [
        (f"messages.{number}.content.{place}.image_url.url", part.image_url.url)
        for number, message in enumerate(request.messages)
        if not isinstance(message.content, str)
        for place, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def read_pictures(
    urls: list[tuple[str, str]], limits: Limits, fetch: Fetch | None
) -> dict[str, Picture]:
    """The images by field; those of the web are fetched together."""
    bodies = {param: data_of_url(url, param, limits) for param, url in urls if not is_web_url(url)}
    web = [(param, url) for param, url in urls if is_web_url(url)]
    params = [param for param, _ in web]
    bodies |= zip(params, fetched([url for _, url in web], params, fetch), strict=True)
    for param, data in bodies.items():
        check_picture(data, param, limits)
    return {param: Picture(data, param) for param, data in bodies.items()}


def to_turn(message: Message, param: str, pictures: dict[str, Picture]) -> Turn:
    """The message with its images at hand and its texts checked."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, (check_text(message.content, f"{param}.content"),))
    pieces: list[str | Picture] = []
    for place, part in enumerate(message.content):
        where = f"{param}.content.{place}"
        if isinstance(part, ImagePart):
            pieces.append(pictures[f"{where}.image_url.url"])
        else:
            pieces.append(check_text(part.text, f"{where}.text"))
    return Turn(role, tuple(pieces))


def text_options(request: ChatRequest, limits: Limits) -> TextOptions:
    """Greedy unless a temperature above 0 is asked for."""
    return TextOptions(
        max_new_tokens=request.num_tokens or min(DEFAULT_MAX_TOKENS, limits.max_tokens),
        num_beams=request.num_beams,
        do_sample=bool(request.temperature),
        temperature=request.temperature or 1.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed or 0,
        stop=request.stops,
    )


def image_options(request: ChatRequest) -> ImageOptions:
    """The picture that is asked for; its noise follows the request's seed."""
    return ImageOptions(
        height=request.image.height,
        width=request.image.width,
        num_inference_steps=request.image.num_inference_steps,
        guidance_scale=request.image.guidance_scale,
        seed=request.seed or 0,
        scheduler=request.image.scheduler,
    )
