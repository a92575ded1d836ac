"""Where the images of a request come from: `data:` URLs, and the web where the server fetches.

A parsed request to work for the engine: limits held, images brought in, messages made a prompt.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Sequence

from emu.data.image_file import PictureError, PictureTooLarge, read_header
from emu.generate.options import ImageOptions, TextOptions
from emu.serve.backend import ModelCard, Work
from emu.serve.errors import refuse
from emu.serve.limits import Limits
from emu.serve.prompt import Picture, Turn, check_text, to_prompt
from emu.serve.schema import DEFAULT_MAX_TOKENS, ChatRequest, ImagePart, Message
from emu.serve.validation import shown

Fetch = Callable[[Sequence[str]], list[bytes | str]]
"""URLs in; for each its bytes, or the words that say why there are none. Called in a thread."""

DATA_URL = re.compile(r"data:(?P<kind>[\w.+/-]*)(?:;[\w=.-]+)*?;base64,", re.IGNORECASE)

NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]|=(?!=?$)")
URL_SAFE = "write + and / for - and _"


def is_web_url(url: str) -> bool:
    """Whether the image must be fetched."""
    return url[:8].lower().startswith(("http://", "https://"))


def data_of_url(url: str, param: str, limits: Limits) -> bytes:
    """The bytes of a `data:…;base64,` URL; raises `ApiError` naming `param`."""
    match = DATA_URL.match(url)
    if match is None:
        raise refuse(
            400,
            f"{param} {_begins(url)}; give data:image/png;base64,… or an http(s) URL",
            param,
            "invalid_image_url",
        )
    encoded = url[match.end() :]
    if len(encoded) > limits.max_image_bytes * 4 // 3 + 4:
        num_bytes = len(encoded) * 3 // 4
        raise refuse(413, _too_large(num_bytes, limits), param, "image_too_large")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{param} is not base64: {_base64_fault(encoded)}"
        raise refuse(400, message, param, "invalid_base64") from error


def _base64_fault(encoded: str) -> str:
    """What is wrong with text that does not decode, and what to do about it."""
    wrong = NOT_BASE64.search(encoded)
    if wrong is None:
        return f"{len(encoded)} characters are cut short; fill up with = to a multiple of 4"
    hints = {"-": URL_SAFE, "_": URL_SAFE, "%": "send it without percent escapes"}
    hint = "send it in one line" if wrong[0].isspace() else hints.get(wrong[0], "is it whole?")
    return f"it holds {wrong[0]!r} at place {wrong.start()}; {hint}"


def _begins(url: str) -> str:
    return f"starts with {url[:30]!r}" if url else "is empty"


def fetched(urls: Sequence[str], params: Sequence[str], fetch: Fetch | None) -> list[bytes]:
    """The bytes behind web addresses; raises `ApiError` for the first that cannot be had."""
    if not urls:
        return []
    if fetch is None:
        raise refuse(
            400,
            f"{params[0]} is the web address {urls[0][:80]!r}; this server fetches no images, "
            "send a data: URL (or start the server with --fetch-images)",
            params[0],
            "fetching_disabled",
        )
    bodies: list[bytes] = []
    for param, url, body in zip(params, urls, fetch(urls), strict=True):
        if isinstance(body, str):
            message = f"{param}: {url[:200]!r} could not be fetched: {body}"
            raise refuse(400, message, param, "image_not_fetched")
        bodies.append(body)
    return bodies


def check_picture(data: bytes, param: str, limits: Limits) -> None:
    """Raises `ApiError` for a picture beyond the limits or of an unknown format."""
    if len(data) > limits.max_image_bytes:
        raise refuse(413, _too_large(len(data), limits), param, "image_too_large")
    try:
        read_header(data, limits.max_image_pixels)
    except PictureTooLarge as error:
        raise refuse(413, f"{param}: {error}", param, "image_too_large") from error
    except PictureError as error:
        raise refuse(422, f"{param}: {error}", param, "invalid_image") from error


def _too_large(num_bytes: int, limits: Limits) -> str:
    return f"a picture has {num_bytes} bytes, the limit is {limits.max_image_bytes}"


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
