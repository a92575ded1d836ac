"""The OpenAI chat-completions schema, as far as a request can mean something here.

| field | here |
|---|---|
| `messages` | roles `system` (or `developer`), `user`, `assistant`; content a string or parts `text`, `image_url` |
| `model` | the served name; may be left out |
| `modalities` | `["text"]` (default), `["image"]`, `["text", "image"]` |
| `max_tokens`, `max_completion_tokens` | one or the other, default 256 |
| `temperature` | 0 to 2; default 0: the likeliest token (OpenAI's default is 1) |
| `top_p`, `seed`, `stop` | as in OpenAI's schema |
| `stream`, `stream_options` | server-sent events, for text |
| `n` | 1 |
| `num_beams`, `image` | ours: beam search; size and manner of a drawn picture |

Fields of OpenAI's schema that do not touch the answer (`IGNORED`) are accepted. Those that would change
it and are not served (`NEUTRAL`) are accepted only with the value that changes nothing. Every other field
is an error, so that a misspelt one is not lost without a word.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emu.serve.errors import ApiError, refuse

IGNORED = (
    "metadata",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "function_call": ("none", None),
    "functions": ([], None),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "n": (1, None),
    "parallel_tool_calls": (True, False, None),
    "presence_penalty": (0, None),
    "response_format": ({"type": "text"}, None),
    "tool_choice": ("none", "auto", None),
    "tools": ([], None),
    "top_logprobs": (0, None),
}
DEFAULT_MAX_TOKENS = 256
SCALARS = (str, int, float, bool, type(None))


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
    content: str | list[Part]
    name: str | None = None  # OpenAI's; without effect


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ImageRequest(_Strict):
    """How a picture is to be drawn; what is left out takes the engine's default."""

    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=7.5, ge=0, le=100)
    scheduler: str = "pndm"


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
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
    def asks_image(self) -> bool:
        """Whether the answer is to hold a picture."""
        return "image" in (self.modalities or ())

    @property
    def asks_text(self) -> bool:
        """Whether the answer is to hold text."""
        return "text" in (self.modalities or ("text",))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_tokens(self) -> int:
        """The longest answer in tokens."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS


def parse_request(body: Any) -> ChatRequest:
    """The request of decoded JSON; raises `ApiError` naming the field, its value and what it may be."""
    if not isinstance(body, dict):
        raise refuse(400, f"the body is a JSON {type(body).__name__}, give an object")
    kept = {name: value for name, value in body.items() if name not in IGNORED}
    for name, neutral in NEUTRAL.items():
        if name in kept and not _is_one_of(value := kept.pop(name), neutral):
            allowed = " or ".join(repr(each) for each in neutral if each is not None)
            raise refuse(400, f"{name} is {_short(value)}; this server takes {allowed}", name)
    try:
        return ChatRequest.model_validate(kept)
    except ValidationError as error:
        raise _explained(error) from error


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed
    )


def _explained(error: ValidationError) -> ApiError:
    """The deepest of pydantic's complaints: a union complains for each of its branches."""
    first = max(error.errors(include_url=False), key=lambda entry: len(entry["loc"]))
    param = _path(first["loc"])
    kind, value = first["type"], first["input"]
    if kind == "missing":
        return refuse(400, f"{param} is missing", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        known = [*ChatRequest.model_fields, *NEUTRAL, *IGNORED] if "." not in param else []
        near = difflib.get_close_matches(param, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return refuse(400, f"{param} is not a known field{hint}", param, "unknown_parameter")
    what = f"{param} is {_short(value)}: " if isinstance(value, SCALARS) else f"{param}: "
    return refuse(400, what + first["msg"], param, "invalid_value")


def _path(loc: tuple[int | str, ...]) -> str:
    """The field's path, without the branches of unions that pydantic puts between its parts."""
    parts: list[str] = []
    in_list = False  # right after `list[…]` come an index and the tag of the part
    for part in loc:
        if isinstance(part, str) and (part == "str" or part.startswith("list[")):
            in_list = part != "str"
        elif isinstance(part, str) and in_list:
            in_list = False
        else:
            parts.append(str(part))
    return ".".join(parts)


def _short(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "…"
