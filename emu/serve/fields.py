"""How the fields of any request are checked: strictly, with the nearest known name for an unknown one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emu.serve.errors import ApiError, shown, validation_error

Neutral = Mapping[str, tuple[Any, ...]]
"""Fields that are accepted only with the values that change nothing."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
COMMON_IGNORED = ("metadata", "safety_identifier", "service_tier", "store", "user")
"""Fields of OpenAI's schema that never affect a reply."""


class Strict(BaseModel):
    """A part of a request: no unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


RequestT = TypeVar("RequestT", bound=Strict)


def parse_fields(
    kind: type[RequestT],
    body: Any,
    known: Mapping[str, Sequence[str]],
    ignored: Collection[str] = (),
    neutral: Neutral = MappingProxyType({}),
    example: str = "{…}",
) -> RequestT:
    """The request of decoded JSON; raises `ApiError` naming the field, its value and what it accepts.

    `known` holds the fields of each object by the last name on its path, `""` for the body.
    """
    if not isinstance(body, dict):
        message = f"the body is {shown(body)}, give an object such as {example}"
        raise ApiError(400, message, code="no_object")
    fields = {name: value for name, value in body.items() if name not in ignored}
    remove_neutral(fields, neutral)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error.errors(include_url=False), known) from error


def remove_neutral(values: dict[str, Any], neutral: Neutral, where: str = "") -> None:
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


def check_limit(param: str, value: int, limit: int) -> None:
    """Raises `ApiError` for a value above its limit."""
    if value > limit:
        raise ApiError(400, f"{param} is {value}, the limit is {limit}", param, "above_limit")
