"""The OpenAI chat-completions schema, as far as a request can mean something here.

| field | here |
|---|---|
| `messages` | roles `system` (or `developer`), `user`, `assistant`; parts `text`, `image_url`, `video_url` |
| `model` | the served name, or `name:adapter`; optional |
| `modalities` | `["text"]` (default), `["image"]`, `["text", "image"]` |
| `max_tokens`, `max_completion_tokens` | one or the other, default 256 |
| `temperature` | 0 to 2; default 0: the likeliest token (OpenAI's default is 1) |
| `n`, `top_p`, `seed`, `stop`, `logprobs`, `top_logprobs` | as in OpenAI's schema |
| `stream`, `stream_options` | server-sent events |
| `ignore_eos` | as of other servers: the text goes on to its limit |
| `num_beams`, `image` | ours: beam search; size and sampler of a generated image |

Fields of OpenAI's schema that do not affect the reply (`IGNORED`) are accepted. Those that would affect it and are not
supported (`NEUTRAL`) are accepted only with the value that changes nothing. In a part of a message, null counts as
absent. Any other field is an error, so that a misspelt one is not ignored silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from emu.generate.prompts import MAX_LOGPROBS
from emu.serve.fields import COMMON_IGNORED, Neutral, Seed, Strict, parse_fields, remove_neutral

IGNORED = (
    *COMMON_IGNORED,
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "verbosity",
)
NEUTRAL: Neutral = {
    "audio": (None,),
    "frequency_penalty": (0, None),
    "function_call": ("none", None),
    "functions": ([], None),
    "logit_bias": ({}, None),
    "moderation": (None,),
    "parallel_tool_calls": (True, False, None),
    "prediction": (None,),
    "presence_penalty": (0, None),
    "response_format": ({"type": "text"}, None),
    "tool_choice": ("none", "auto", None),
    "tools": ([], None),
    "web_search_options": (None,),
}
NEUTRAL_IN_MESSAGES: Neutral = {
    "annotations": ([], None),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": ([], None),
}
"""Of a reply that is sent back as a turn of the conversation, as OpenAI's clients do."""
IGNORED_IN_PARTS = frozenset({"prompt_cache_breakpoint"})
DEFAULT_FRAMES = 8
"""Frames of a video, as in the released code."""


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    """What an assistant said when it refused; a text like any other."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Strict):
    """Where an image is: a `data:` URL, or http(s) where the server fetches."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"  # one size serves all


class ImagePart(Strict):
    """An image; `index` numbers the images of a reply that is sent back."""

    type: Literal["image_url"]
    image_url: ImageUrl
    index: int | None = Field(default=None, ge=0)


class VideoUrl(Strict):
    """Where a video is: a `data:` URL, or http(s) where the server fetches; and how many frames are used."""

    url: str
    num_frames: int = Field(default=DEFAULT_FRAMES, ge=1)


class VideoPart(Strict):
    """A video: its frames, evenly spaced, become images of the prompt."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart | RefusalPart, Field(discriminator="type")]


class ImagePosition(Strict):
    """The position of an image among the parts of a reply, by its index in `images`."""

    type: Literal["image"]
    index: int = Field(ge=0)


ReplyPart = Annotated[TextPart | ImagePosition, Field(discriminator="type")]


class Message(Strict):
    """One turn of a conversation. `images` and `parts` are those of a reply that is sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, fail_fast=True)] | None
    name: str | None = None  # OpenAI's field; has no effect
    images: Annotated[list[ImagePart], Field(fail_fast=True)] | None = None
    parts: Annotated[list[ReplyPart], Field(fail_fast=True)] | None = None


NEVER = 2**31  # positions: more than any model has


class StreamOptions(Strict):
    """What a stream contains besides text."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = False
    continuous_usage_stats: bool | None = False
    """Sent by load clients; a piece of text is a token here, and the usage stands in the last chunk alone."""


class ImageRequest(Strict):
    """How an image is generated; omitted fields take the engine's defaults."""

    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=7.5, ge=0, le=100)
    scheduler: str | None = None
    negative_prompt: str | None = None


class TextRequest(Strict):
    """The fields that chat and plain completions share."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n: int | None = Field(default=None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = False
    """The text goes on to its limit, as load clients need it."""
    default_max_tokens: ClassVar[int]

    @property
    def num_tokens(self) -> int | None:
        """The maximum length of the reply in tokens, if given."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens whose log-probabilities are given beside that of each token; None for none at all."""
        return None

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt are asked for."""
        return False

    @property
    def min_length(self) -> int:
        """Ids before the end token is allowed."""
        return NEVER if self.ignore_eos else 0

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(TextRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    modalities: list[Literal["text", "image"]] | None = Field(
        default=None, min_length=1, fail_fast=True
    )
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    num_beams: int = Field(default=1, ge=1)
    image: ImageRequest = ImageRequest()
    default_max_tokens = 256

    @property
    def num_logprobs(self) -> int | None:
        """As `TextRequest.num_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def has_image(self) -> bool:
        """Whether the reply is to hold a generated image."""
        return "image" in (self.modalities or ())

    @property
    def has_text(self) -> bool:
        """Whether the reply is to hold text."""
        return "text" in (self.modalities or ("text",))

    @property
    def num_tokens(self) -> int | None:
        """The maximum length of the reply in tokens, if given."""
        return self.max_completion_tokens or self.max_tokens


KNOWN: dict[str, Sequence[str]] = {
    "": [*ChatRequest.model_fields, *NEUTRAL, *IGNORED],
    "messages": [*Message.model_fields],
    "content": [
        *dict.fromkeys(
            name
            for kind in (TextPart, ImagePart, VideoPart, RefusalPart)
            for name in kind.model_fields
        )
    ],
    "images": [*ImagePart.model_fields],
    "parts": [*dict.fromkeys([*TextPart.model_fields, *ImagePosition.model_fields])],
    "image_url": [*ImageUrl.model_fields],
    "video_url": [*VideoUrl.model_fields],
    "image": [*ImageRequest.model_fields],
    "stream_options": [*StreamOptions.model_fields],
}
"""The fields of each object, by the last name on its path."""


def parse_request(body: Any) -> ChatRequest:
    """The request of decoded JSON; raises `ApiError` naming the field, its value and what it accepts."""
    if isinstance(body, dict) and isinstance(body.get("messages"), list):
        messages = [_without_neutral(m, i) for i, m in enumerate(body["messages"])]
        body = body | {"messages": messages}
    return parse_fields(ChatRequest, body, KNOWN, IGNORED, NEUTRAL, '{"messages": […]}')


def _without_neutral(message: Any, number: int) -> Any:
    if not isinstance(message, dict):
        return message
    message = dict(message)
    remove_neutral(message, NEUTRAL_IN_MESSAGES, f"messages.{number}.")
    for name in ("content", "images", "parts"):
        if isinstance(message.get(name), list):
            message[name] = [_without_nulls(part) for part in message[name]]
    return message


def _without_nulls(value: Any) -> Any:
    """A part without its null fields: rows of tables have all columns, with null where there is nothing."""
    if not isinstance(value, dict):
        return value
    return {
        name: _without_nulls(field)
        for name, field in value.items()
        if field is not None and name not in IGNORED_IN_PARTS
    }
