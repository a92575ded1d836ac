"""From a parsed chat request to a request of the engine: limits checked, images read, messages made a prompt.

Instruction format of Emu-I (paper section 3; evaluation code of the release):

    <System Message> [USER]: <Instruction> [ASSISTANT]: <Answer></s> [USER]: …

The last turn stays open for the model; if the last message is the assistant's, the reply continues its text. Without
a system message, the released one is used if there is one image, and none otherwise; for the frames of a video, send
the released message of videos. Models without instruction tuning
get the contents of all messages, separated by spaces, and continue them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from emu.config import INSTRUCT_TOKENS
from emu.data.dialogue import conversation
from emu.generate.prompts import ImageOptions, TextOptions
from emu.serve.backend import Content, EncodedImage, GenerationRequest, ModelCard
from emu.serve.errors import ApiError, nearest, shown
from emu.serve.schema import DEFAULT_MAX_TOKENS, ChatRequest, ImagePart, Limits, Message
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE, VIDEO_SYSTEM_MESSAGE, system_message
from schemas.images import ImageError, open_image

Fetch = Callable[[Sequence[str]], list[bytes | str]]
"""From URLs to the bytes of each, or the reason why there are none. Called in a thread."""

RESERVED = (*INSTRUCT_TOKENS, "<s>", "</s>", "<unk>")
MAX_STOPS = 4  # OpenAI's limit
MAX_STOP_LENGTH = 1000  # characters; a stop string is searched for after every token
# RFC 2397: a media type, parameters whose values may be quoted, and `;base64`; as in browsers with spaces around it
DATA_URL = re.compile(r'data:[^;,"]*(?:;(?:[^;,"]|"[^"]*")*)*?; *base64 *,', re.IGNORECASE)
MAX_DATA_URL_HEAD = 4096
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]|=(?!=?$)")
URL_SAFE = "write + and / for - and _"


@dataclass(frozen=True)
class Turn:
    """One message with its images."""

    role: Literal["system", "user", "assistant"]
    content: Content


async def read_request(
    request: ChatRequest, card: ModelCard, limits: Limits, fetch: Fetch | None
) -> GenerationRequest:
    """The request of the engine; raises `ApiError` naming the field, its value and the limit."""
    check_limits(request, card, limits)
    urls = image_urls(request)
    if len(urls) > limits.max_images:
        message = f"the messages hold {len(urls)} images, the limit is {limits.max_images}"
        raise ApiError(413, message, "messages", "too_many_images")
    images = await asyncio.to_thread(read_images, urls, limits, fetch)
    turns = [to_turn(m, f"messages.{i}", images) for i, m in enumerate(request.messages)]
    return GenerationRequest(
        prompt=to_prompt(turns, card.config.instruct),
        text=text_options(request, limits) if request.has_text else None,
        image=image_options(request),
        image_first=request.has_image,
    )


def check_limits(request: ChatRequest, card: ModelCard, limits: Limits) -> None:
    """Raises `ApiError` for the first field beyond its limit, or that conflicts with another."""
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
            raise ApiError(400, f"{param} is {value}, the limit is {limit}", param, "above_limit")
    _check_stops(request)
    _check_combinations(request)
    if request.has_image and not card.generates_images:
        message = f"the model {card.name!r} has no visual decoder and generates no images"
        raise ApiError(400, message, "modalities", "invalid_value")
    for side in ("height", "width"):
        value = getattr(request.image, side)
        if card.image_multiple and value is not None and value % card.image_multiple:
            message = f"image.{side} is {value}, give a multiple of {card.image_multiple}"
            raise ApiError(400, message, f"image.{side}", "invalid_value")
    _check_scheduler(request.image.scheduler, card.schedulers)


def _check_scheduler(name: str | None, known: Sequence[str]) -> None:
    if name is None or name in known:
        return
    near = nearest(name, known)
    hint = f"; did you mean {shown(near)}?" if near else ""
    message = f"image.scheduler is {shown(name)}, give one of {', '.join(map(shown, known))}{hint}"
    raise ApiError(400, message, "image.scheduler", "invalid_value")


def _check_stops(request: ChatRequest) -> None:
    if len(request.stops) > MAX_STOPS:
        message = f"stop holds {len(request.stops)} strings, the limit is {MAX_STOPS}"
        raise ApiError(400, message, "stop", "above_limit")
    for number, stop in enumerate(request.stops):
        param = "stop" if isinstance(request.stop, str) else f"stop.{number}"
        if not stop:
            message = (
                f'{param} is "", which would end every text at once; give at least one character'
            )
            raise ApiError(400, message, param, "invalid_value")
        if len(stop) > MAX_STOP_LENGTH:
            message = f"{param} has {len(stop):,} characters, the limit is {MAX_STOP_LENGTH:,}"
            raise ApiError(400, message, param, "above_limit")


def _check_combinations(request: ChatRequest) -> None:
    """Raises `ApiError` for fields that exclude each other."""
    tokens, completion = request.max_tokens, request.max_completion_tokens
    if tokens and completion:
        message = f"max_tokens is {tokens} and max_completion_tokens {completion}, give one of them"
        raise ApiError(400, message, "max_tokens", "invalid_value")
    if request.num_beams > 1 and (request.temperature or request.stream):
        other = f"temperature {request.temperature:g}" if request.temperature else "stream true"
        message = f"num_beams is {request.num_beams} and {other}, give one or the other"
        raise ApiError(400, message, "num_beams", "invalid_value")
    if request.stream_options is not None and not request.stream:
        message = "stream_options is given without stream; give stream true, or omit it"
        raise ApiError(400, message, "stream_options", "invalid_value")
    if request.has_image and request.stream:
        message = (
            f"stream is true with modalities {shown(request.modalities)}; only text is streamed"
        )
        raise ApiError(400, message, "stream", "invalid_value")


def image_urls(request: ChatRequest) -> list[tuple[str, str]]:
    """The field and the URL of every image in the messages, in order."""
    return [
        (f"messages.{number}.content.{index}.image_url.url", part.image_url.url)
        for number, message in enumerate(request.messages)
        if not isinstance(message.content, str)
        for index, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def read_images(
    urls: list[tuple[str, str]], limits: Limits, fetch: Fetch | None
) -> dict[str, EncodedImage]:
    """The images by field; those with web addresses are fetched together."""
    bodies = {param: data_of_url(url, param, limits) for param, url in urls if not is_web_url(url)}
    web = [(param, url) for param, url in urls if is_web_url(url)]
    params = [param for param, _ in web]
    bodies |= zip(params, fetch_bodies([url for _, url in web], params, fetch), strict=True)
    for param, data in bodies.items():
        check_image(data, param, limits)
    return {param: EncodedImage(data, param) for param, data in bodies.items()}


def is_web_url(url: str) -> bool:
    """Whether the image has to be fetched."""
    return url[:8].lower().startswith(("http://", "https://"))


def data_of_url(url: str, param: str, limits: Limits) -> bytes:
    """The bytes of a `data:…;base64,` URL; raises `ApiError` naming `param`."""
    match = DATA_URL.match(url, 0, MAX_DATA_URL_HEAD)
    if match is None:
        begin = f"starts with {url[:30]!r}" if url else "is empty"
        message = f"{param} {begin}; give data:image/png;base64,… or an http(s) URL"
        raise ApiError(400, message, param, "invalid_image_url")
    encoded = url[match.end() :]
    if len(encoded) > limits.max_image_bytes * 4 // 3 + 4:
        num_bytes = len(encoded) * 3 // 4
        raise ApiError(413, _too_large(num_bytes, limits), param, "image_too_large")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{param} is not base64: {_base64_error(encoded)}"
        raise ApiError(400, message, param, "invalid_base64") from error


def _base64_error(encoded: str) -> str:
    """What is wrong with text that cannot be decoded, and how to correct it."""
    wrong = NOT_BASE64.search(encoded)
    if wrong is None:
        return f"{len(encoded)} characters are truncated; pad with = to a multiple of 4"
    hints = {"-": URL_SAFE, "_": URL_SAFE, "%": "send it without percent escapes"}
    hint = "send it in one line" if wrong[0].isspace() else hints.get(wrong[0], "is it complete?")
    return f"it holds {wrong[0]!r} at index {wrong.start()}; {hint}"


def fetch_bodies(urls: Sequence[str], params: Sequence[str], fetch: Fetch | None) -> list[bytes]:
    """The bytes behind web addresses; raises `ApiError` for the first that cannot be fetched."""
    if not urls:
        return []
    if fetch is None:
        message = (
            f"{params[0]} is the web address {urls[0][:80]!r}; this server fetches no images, "
            "send a data: URL (or start the server with --fetch-images)"
        )
        raise ApiError(400, message, params[0], "fetching_disabled")
    bodies: list[bytes] = []
    for param, url, body in zip(params, urls, fetch(urls), strict=True):
        if isinstance(body, str):
            message = f"{param}: {url[:200]!r} could not be fetched: {body}"
            raise ApiError(400, message, param, "image_not_fetched")
        bodies.append(body)
    return bodies


def check_image(data: bytes, param: str, limits: Limits) -> None:
    """Raises `ApiError` for an image beyond the limits or of an unknown format."""
    if len(data) > limits.max_image_bytes:
        raise ApiError(413, _too_large(len(data), limits), param, "image_too_large")
    try:
        open_image(data, limits.max_image_pixels)
    except ImageError as error:
        is_large = error.reason == "image_too_many_pixels"
        status, code = (413, "image_too_large") if is_large else (422, "invalid_image")
        raise ApiError(status, str(error.at(param)), param, code) from error


def _too_large(num_bytes: int, limits: Limits) -> str:
    return f"an image has {num_bytes} bytes, the limit is {limits.max_image_bytes}"


def to_turn(message: Message, param: str, images: dict[str, EncodedImage]) -> Turn:
    """The message with its images, its texts checked."""
    role = "system" if message.role == "developer" else message.role
    is_system = role == "system"
    if isinstance(message.content, str):
        return Turn(role, (check_text(message.content, f"{param}.content", is_system),))
    pieces: list[str | EncodedImage] = []
    for index, part in enumerate(message.content):
        where = f"{param}.content.{index}"
        if isinstance(part, ImagePart):
            pieces.append(images[f"{where}.image_url.url"])
        else:
            pieces.append(check_text(part.text, f"{where}.text", is_system))
    return Turn(role, tuple(pieces))


def check_text(text: str, param: str, is_system: bool = False) -> str:
    """The text; raises `ApiError` if it writes a control token, unless as the paper's system message."""
    known = (IMAGE_SYSTEM_MESSAGE, VIDEO_SYSTEM_MESSAGE) if is_system else ()
    message = next((m for m in known if text.startswith(m)), "")
    for token in RESERVED:
        if token in text.removeprefix(message):
            message = (
                f"{param} contains {token}, a control token of the model; write it differently"
            )
            raise ApiError(400, message, param, "reserved_token")
    return text


def to_prompt(turns: Sequence[Turn], instruct: bool) -> Content:
    """The pieces of the prompt, for a model with or without instruction tuning."""
    return _instruction(turns) if instruct else _concatenation(turns)


def _concatenation(turns: Sequence[Turn]) -> Content:
    pieces: list[str | EncodedImage] = []
    for number, turn in enumerate(turns):
        pieces += [" ", *turn.content] if number else turn.content
    return tuple(pieces)


def _instruction(turns: Sequence[Turn]) -> Content:
    if all(turn.role == "system" for turn in turns):
        raise ApiError(400, "messages holds no message of the user", "messages")
    given: list[tuple[str, Content]] = [(turn.role, turn.content) for turn in turns]
    if not any(turn.role == "system" for turn in turns):
        images = [p for turn in turns for p in turn.content if isinstance(p, EncodedImage)]
        message = system_message(len(images), 0)
        given = [("system", (message,)), *given] if message else given
    return tuple(conversation(given))


def text_options(request: ChatRequest, limits: Limits) -> TextOptions:
    """Greedy unless the temperature is above 0."""
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
    """The options of the image; its noise follows the seed of the request."""
    return ImageOptions(
        height=request.image.height,
        width=request.image.width,
        num_inference_steps=request.image.num_inference_steps,
        guidance_scale=request.image.guidance_scale,
        seed=request.seed or 0,
        scheduler=request.image.scheduler,
    )
