"""The OpenAI chat-completions schema, as far as a request can mean something here, and the limits of a request.

| field | here |
|---|---|
| `messages` | roles `system` (or `developer`), `user`, `assistant`; content a string or parts `text`, `image_url` |
| `model` | the served name; optional |
| `modalities` | `["text"]` (default), `["image"]`, `["text", "image"]` |
| `max_tokens`, `max_completion_tokens` | one or the other, default 256 |
| `temperature` | 0 to 2; default 0: the likeliest token (OpenAI's default is 1) |
| `top_p`, `seed`, `stop` | as in OpenAI's schema |
| `stream`, `stream_options` | server-sent events, for text |
| `n` | 1 |
| `num_beams`, `image` | ours: beam search; size and sampler of a generated image |

Fields of OpenAI's schema that do not affect the reply (`IGNORED`) are accepted. Those that would affect it and are not
supported (`NEUTRAL`) are accepted only with the value that changes nothing. In a part of a message, null counts as
absent. Any other field is an error, so that a misspelt one is not ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emu.serve.errors import ApiError, shown, validation_error
from schemas.validation import Checked

IGNORED = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (0, None),
    "function_call": ("none", None),
    "functions": ([], None),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "n": (1, None),
    "parallel_tool_calls": (True, False, None),
    "prediction": (None,),
    "presence_penalty": (0, None),
    "response_format": ({"type": "text"}, None),
    "tool_choice": ("none", "auto", None),
    "tools": ([], None),
    "top_logprobs": (0, None),
    "web_search_options": (None,),
}
NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": ([], None),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": ([], None),
}
"""Of a reply that is sent back as a turn of the conversation, as OpenAI's clients do."""
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class Limits(Checked):
    """Upper limits of one request; a request beyond them is refused with the value and the limit."""

    max_body_bytes: Annotated[int, Field(ge=1)] = 32 * 1024 * 1024
    """Bytes of the whole request; base64 makes images a third larger."""
    max_images: Annotated[int, Field(ge=1)] = 16
    """Images in all messages together."""
    max_image_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    """Encoded bytes of one image."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Width times height of one image, read from its header before anything is decoded."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Tokens of a reply."""
    max_side: Annotated[int, Field(ge=1)] = 1024
    """Height and width of a generated image, in pixels."""
    max_steps: Annotated[int, Field(ge=1)] = 100
    """Denoising steps of a generated image."""
    max_beams: Annotated[int, Field(ge=1)] = 8
    """Beams of a beam search."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds from the request to the end of its response, including the time in the queue."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is: a `data:` URL, or http(s) where the server fetches."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # one size serves all


class ImagePart(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, fail_fast=True)]
    name: str | None = None  # OpenAI's field; has no effect


class StreamOptions(_Strict):
    """What a stream contains besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ImageRequest(_Strict):
    """How an image is generated; omitted fields take the engine's defaults."""

    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=7.5, ge=0, le=100)
    scheduler: str | None = None


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    model: str | None = None
    modalities: list[Literal["text", "image"]] | None = Field(default=None, min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    num_beams: int = Field(default=1, ge=1)
    image: ImageRequest = ImageRequest()

    @property
    def has_image(self) -> bool:
        """Whether the reply is to hold a generated image."""
        return "image" in (self.modalities or ())

    @property
    def has_text(self) -> bool:
        """Whether the reply is to hold text."""
        return "text" in (self.modalities or ("text",))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_tokens(self) -> int | None:
        """The maximum length of the reply in tokens, if given."""
        return self.max_completion_tokens or self.max_tokens


KNOWN: dict[str, Sequence[str]] = {
    "": [*ChatRequest.model_fields, *NEUTRAL, *IGNORED],
    "messages": [*Message.model_fields],
    "content": [*dict.fromkeys([*TextPart.model_fields, *ImagePart.model_fields])],
    "image_url": [*ImageUrl.model_fields],
    "image": [*ImageRequest.model_fields],
    "stream_options": [*StreamOptions.model_fields],
}
"""The fields of each object, by the last name on its path."""


def parse_request(body: Any) -> ChatRequest:
    """The request of decoded JSON; raises `ApiError` naming the field, its value and what it accepts."""
    if not isinstance(body, dict):
        message = f'the body is {shown(body)}, give an object such as {{"messages": […]}}'
        raise ApiError(400, message, code="no_object")
    fields = {name: value for name, value in body.items() if name not in IGNORED}
    _remove_neutral(fields, NEUTRAL)
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [_without_neutral(m, i) for i, m in enumerate(fields["messages"])]
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error.errors(include_url=False), KNOWN) from error


def _without_neutral(message: Any, number: int) -> Any:
    if not isinstance(message, dict):
        return message
    message = dict(message)
    _remove_neutral(message, NEUTRAL_IN_MESSAGES, f"messages.{number}.")
    if isinstance(message.get("content"), list):
        message["content"] = [_without_nulls(part) for part in message["content"]]
    return message


def _without_nulls(value: Any) -> Any:
    """A part without its null fields: rows of tables have all columns, with null where there is nothing."""
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(field) for name, field in value.items() if field is not None}


def _remove_neutral(
    values: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]], where: str = ""
) -> None:
    """Removes the fields that change nothing; raises `ApiError` for a value that would."""
    for name in [name for name in values if name in neutral]:
        value, allowed = values.pop(name), neutral[name]
        if not any(_equal(value, each) for each in allowed):
            accepted = " or ".join(shown(each) for each in allowed)
            message = (
                f"{where}{name} is {shown(value)}; this server accepts only {accepted}, or omit it"
            )
            raise ApiError(400, message, where + name, "unsupported_value")


def _equal(value: Any, allowed: Any) -> bool:
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
