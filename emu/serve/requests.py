"""From a parsed chat request to requests of the engine: limits checked, images read, messages made a prompt.

Instruction format of Emu-I (paper section 3; evaluation code of the release):

    <System Message> [USER]: <Instruction> [ASSISTANT]: <Answer></s> [USER]: …

The last turn stays open for the model; if the last message is the assistant's, the reply continues its text. Without
a system message, the released one is used if there is one image or one video, and none otherwise. Models without
instruction tuning get the contents of all messages, separated by spaces, and continue them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from emu.config import INSTRUCT_TOKENS
from emu.data.dialogue import conversation
from emu.generate.prompts import ImageOptions
from emu.serve.backend import Content, EncodedImage, EncodedVideo, GenerationRequest, ModelCard
from emu.serve.errors import ApiError, nearest, shown
from emu.serve.fields import check_limit
from emu.serve.limits import Limits
from emu.serve.media import Fetch, Media, MediaSource, read_media
from emu.serve.sampling import image_options, seed_of, text_options
from emu.serve.schema import (
    ChatRequest,
    ImagePart,
    ImageRequest,
    Message,
    Part,
    TextPart,
    TextRequest,
    VideoPart,
)
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE, VIDEO_SYSTEM_MESSAGE, system_message

RESERVED = (*INSTRUCT_TOKENS, "<s>", "</s>", "<unk>")
MAX_STOPS = 4  # OpenAI's limit
MAX_STOP_LENGTH = 1000  # characters; a stop string is searched for after every token
DEFAULT_IMAGE = ImageOptions()
MAX_PIECE_LENGTH = 64
"""Characters that one token can stand for at most: a longer text is refused before it is tokenized."""


@dataclass(frozen=True)
class Turn:
    """One message with its images."""

    role: Literal["system", "user", "assistant"]
    content: Content


async def read_request(
    request: ChatRequest, card: ModelCard, limits: Limits, fetch: Fetch | None, adapter: str = ""
) -> GenerationRequest:
    """The request of the engine; raises `ApiError` naming the field, its value and the limit."""
    check_limits(request, card, limits)
    contents = [content_of(m, f"messages.{i}") for i, m in enumerate(request.messages)]
    sources = [
        source for content in contents for source in content if isinstance(source, MediaSource)
    ]
    media: Media = {}
    if sources:
        media = await asyncio.to_thread(read_media, sources, limits, fetch)
    turns = [
        to_turn(message, content, media)
        for message, content in zip(request.messages, contents, strict=True)
    ]
    prompt = to_prompt(turns, card.uses_dialogue(adapter))
    check_positions(prompt, card, "messages")
    negative = negative_prompt(request.image, card, adapter)
    seed = seed_of(request.seed)
    text = text_options(request, limits, seed, request.num_beams) if request.has_text else None
    has_options = request.has_image or "image" in request.model_fields_set
    image = image_options(request.image, seed, negative) if has_options else DEFAULT_IMAGE
    return GenerationRequest(
        prompt=prompt,
        text=text,
        image=image,
        image_first=request.has_image,
        adapter=adapter,
    )


def check_limits(request: ChatRequest, card: ModelCard, limits: Limits) -> None:
    """Raises `ApiError` for the first field beyond its limit, or that conflicts with another."""
    check_limit("max_completion_tokens", request.max_completion_tokens or 1, limits.max_tokens)
    check_limit("num_beams", request.num_beams, limits.max_beams)
    check_text_limits(request, limits)
    _check_combinations(request)
    if request.has_image:
        check_generates_images(card, "modalities")
    check_image_limits(request.image, card, limits)


def check_text_limits(request: TextRequest, limits: Limits) -> None:
    """Raises `ApiError` for a field of text generation that is beyond its limit."""
    check_limit("max_tokens", request.max_tokens or 1, limits.max_tokens)
    check_limit("n", request.n or 1, limits.max_choices)
    _check_stops(request)
    if request.stream_options is not None and not request.stream:
        message = "stream_options is given without stream; give stream true, or omit it"
        raise ApiError(400, message, "stream_options", "invalid_value")


def check_generates_images(card: ModelCard, param: str | None) -> None:
    """Raises `ApiError` for a model without a visual decoder."""
    if not card.generates_images:
        message = f"the model {card.name!r} has no visual decoder and generates no images"
        raise ApiError(400, message, param, "invalid_value")


def check_image_limits(
    image: ImageRequest, card: ModelCard, limits: Limits, prefix: str = "image."
) -> None:
    """Raises `ApiError` for a size, number of steps or scheduler that is not possible."""
    check_limit(f"{prefix}height", image.height or 1, limits.max_side)
    check_limit(f"{prefix}width", image.width or 1, limits.max_side)
    check_limit(f"{prefix}num_inference_steps", image.num_inference_steps, limits.max_steps)
    for side in ("height", "width"):
        value = getattr(image, side)
        if card.image_multiple and value is not None and value % card.image_multiple:
            message = f"{prefix}{side} is {value}, give a multiple of {card.image_multiple}"
            raise ApiError(400, message, f"{prefix}{side}", "invalid_value")
    _check_scheduler(image.scheduler, card.schedulers, f"{prefix}scheduler")


def check_positions(prompt: Content, card: ModelCard, param: str) -> None:
    """Raises `ApiError` for a prompt that cannot fit, before anything of it is decoded or tokenized."""
    limit, per_image = card.config.language.max_positions, card.config.former.num_queries + 2
    num_images = sum(
        piece.num_frames if isinstance(piece, EncodedVideo) else 1
        for piece in prompt
        if not isinstance(piece, str)
    )
    num_chars = sum(len(piece) for piece in prompt if isinstance(piece, str))
    needed = num_images * per_image + num_chars // MAX_PIECE_LENGTH + 1
    if needed > limit:
        message = (
            f"the prompt takes at least {needed} positions ({num_images} images at {per_image} each), "
            f"the model has {limit}; shorten the prompt"
        )
        raise ApiError(400, message, param, "context_length_exceeded")


def _check_scheduler(name: str | None, known: Sequence[str], param: str) -> None:
    if name is None or name in known:
        return
    near = nearest(name, known)
    hint = f"; did you mean {shown(near)}?" if near else ""
    message = f"{param} is {shown(name)}, give one of {', '.join(map(shown, known))}{hint}"
    raise ApiError(400, message, param, "invalid_value")


def _check_stops(request: TextRequest) -> None:
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
    if tokens and completion and tokens != completion:
        message = f"max_tokens is {tokens} and max_completion_tokens {completion}, give one of them"
        raise ApiError(400, message, "max_tokens", "invalid_value")
    if request.num_beams > 1 and (request.temperature or request.stream):
        other = f"temperature {request.temperature:g}" if request.temperature else "stream true"
        message = f"num_beams is {request.num_beams} and {other}, give one or the other"
        raise ApiError(400, message, "num_beams", "invalid_value")
    if request.top_logprobs is not None and not request.logprobs:
        message = f"top_logprobs is {request.top_logprobs} without logprobs; give logprobs true"
        raise ApiError(400, message, "top_logprobs", "invalid_value")
    if request.logprobs and request.num_beams > 1:
        message = f"logprobs is true with num_beams {request.num_beams}, give one or the other"
        raise ApiError(400, message, "logprobs", "invalid_value")


def content_of(message: Message, param: str) -> list[str | MediaSource]:
    """The texts of a message, checked, and where its images and videos are, in order."""
    is_system = message.role in ("system", "developer")
    content = message.content
    pieces: list[str | MediaSource] = []
    if message.parts and message.images:
        return _parts_of(message, param)
    if isinstance(content, str):
        pieces.append(check_text(content, f"{param}.content", is_system))
    elif content is not None:
        pieces += [_piece(p, f"{param}.content.{i}", is_system) for i, p in enumerate(content)]
    elif not message.images:
        message_text = f"{param}.content is null, give a string or a list of parts"
        raise ApiError(400, message_text, f"{param}.content", "invalid_value")
    for number, image in enumerate(message.images or ()):
        pieces.append(_piece(image, f"{param}.images.{number}", is_system))
    return pieces


def _parts_of(message: Message, param: str) -> list[str | MediaSource]:
    """The pieces of a reply that is sent back, in the order that its parts say."""
    images = message.images or []
    pieces: list[str | MediaSource] = []
    for number, part in enumerate(message.parts or ()):
        where = f"{param}.parts.{number}"
        if isinstance(part, TextPart):
            pieces.append(check_text(part.text, f"{where}.text"))
        elif part.index < len(images):
            pieces.append(_piece(images[part.index], f"{param}.images.{part.index}", False))
        else:
            text = f"{where}.index is {part.index}, the message has {len(images)} images"
            raise ApiError(400, text, f"{where}.index", "invalid_value")
    return pieces


def _piece(part: Part, where: str, is_system: bool) -> str | MediaSource:
    if isinstance(part, ImagePart):
        return MediaSource(f"{where}.image_url.url", part.image_url.url)
    if isinstance(part, VideoPart):
        return MediaSource(f"{where}.video_url.url", part.video_url.url, part.video_url.num_frames)
    if isinstance(part, TextPart):
        return check_text(part.text, f"{where}.text", is_system)
    return check_text(part.refusal, f"{where}.refusal", is_system)


def to_turn(message: Message, content: Sequence[str | MediaSource], media: Media) -> Turn:
    """The message with what its images and videos hold."""
    role = "system" if message.role == "developer" else message.role
    return Turn(role, tuple(p if isinstance(p, str) else media[p.param] for p in content))


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


def negative_prompt(
    image: ImageRequest, card: ModelCard, adapter: str, param: str = "image.negative_prompt"
) -> str:
    """The negative prompt in the format of a prompt; the empty one has none. Raises `ApiError`."""
    if not image.negative_prompt:
        return ""
    turn = Turn("user", (check_text(image.negative_prompt, param),))
    prompt = to_prompt([turn], card.uses_dialogue(adapter))
    check_positions(prompt, card, param)
    return "".join(piece for piece in prompt if isinstance(piece, str))


def _concatenation(turns: Sequence[Turn]) -> Content:
    pieces: list[str | EncodedImage | EncodedVideo] = []
    for number, turn in enumerate(turns):
        pieces += [" ", *turn.content] if number else turn.content
    return tuple(pieces)


def _instruction(turns: Sequence[Turn]) -> Content:
    if all(turn.role == "system" for turn in turns):
        raise ApiError(400, "messages holds no message of the user", "messages")
    given: list[tuple[str, Content]] = [(turn.role, turn.content) for turn in turns]
    if not any(turn.role == "system" for turn in turns):
        pieces = [piece for turn in turns for piece in turn.content]
        num_images = sum(isinstance(piece, EncodedImage) for piece in pieces)
        num_videos = sum(isinstance(piece, EncodedVideo) for piece in pieces)
        message = system_message(num_images, num_videos)
        given = [("system", (message,)), *given] if message else given
    return tuple(conversation(given))
