"""Errors of the HTTP API in OpenAI's form, and validation errors in words: the field, its value, what it accepts.

`{"error": {"message", "type", "param", "code"}}` with a status.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.strict_json import MAX_SHOWN

KINDS = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "a string",
}
BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""The `type` of an error by its status, where it is not `invalid_request_error` or `server_error`."""


@dataclass(frozen=True)
class ErrorResponse:
    """Why a request failed, as the client is told; may cross processes."""

    status: int
    message: str
    param: str | None = None  # the path of the field, such as messages.0.content.1
    code: str | None = None
    retry_after_s: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The body of the response."""
        kind = TYPES.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class ApiError(Exception):
    """Ends a request with an error response."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.response = ErrorResponse(status, message, param, code, retry_after_s)

    @classmethod
    def of(cls, response: ErrorResponse) -> ApiError:
        """The exception of an error response."""
        error = cls(response.status, response.message)
        error.response = response
        return error


def shown(value: Any) -> str:
    """The value as JSON, cut where it is long."""
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    text = ""
    for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        text += piece
        if len(text) > MAX_SHOWN:
            return text[:MAX_SHOWN] + "…"
    return text


def validation_error(errors: Sequence[Any], known: Mapping[str, Sequence[str]]) -> ApiError:
    """The deepest of pydantic's validation errors (a union reports one per branch).

    `known` holds the fields of each object by the last name on its path, `""` for the body.
    """
    deepest = max(len(entry["loc"]) for entry in errors)
    first, *others = sorted(
        (entry for entry in errors if len(entry["loc"]) == deepest),
        # a misspelt name explains a missing one
        key=lambda entry: entry["type"] != "extra_forbidden",
    )
    path, kind = field_path(first["loc"]), first["type"]
    param = ".".join(path)
    if kind == "missing":
        return ApiError(400, f"{param} is missing", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return unknown_field(path, known)
    if kind == "union_tag_not_found":
        param += f".{first['ctx']['discriminator'].strip(chr(39))}"
        return ApiError(400, f"{param} is missing", param, "missing_required_parameter")
    value, accepted = first["input"], _accepted(first, [e for e in others if _same(e, first)])
    if kind == "union_tag_invalid":
        param, value = f"{param}.type", first["ctx"]["tag"]
    return ApiError(400, f"{param} is {shown(value)}, give {accepted}", param, "invalid_value")


def unknown_field(path: Sequence[str], known: Mapping[str, Sequence[str]]) -> ApiError:
    """The error for an unknown field, with the known one that is most similar."""
    name, parents = path[-1], [part for part in path[:-1] if not part.isdigit()]
    names = next((known[part] for part in reversed(parents) if part in known), known[""])
    near = nearest(name, names)
    hint = f"; did you mean {near}?" if near else ""
    if not near and parents:
        hint = f"; known fields are {', '.join(names)}"
    param = ".".join([*path[:-1], name[:MAX_SHOWN]])
    return ApiError(400, f"{param} is not a known field{hint}", param, "unknown_parameter")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to this one, or has it as one of its words."""
    name, known = name[:MAX_SHOWN].lower(), list(known)
    near = difflib.get_close_matches(name, known, 1)
    parts = [each for each in known if name in each.split("_")]
    return next(iter(near or parts), None)


def field_path(loc: Sequence[int | str]) -> list[str]:
    """The path of the field, without the branches of unions that pydantic inserts."""
    parts: list[str] = []
    has_tag = False  # after `list[…]` and `parts` come an index and the tag of the part
    for part in loc:
        if isinstance(part, str) and (part == "str" or part.startswith(("list[", "tagged-union["))):
            has_tag = part != "str"
        elif isinstance(part, str) and has_tag:
            has_tag = False
        else:
            parts.append(str(part))
            has_tag = has_tag or part == "parts"
    return parts


def _same(entry: Any, other: Any) -> bool:
    return field_path(entry["loc"]) == field_path(other["loc"])


def _accepted(entry: Any, others: Sequence[Any]) -> str:
    """What the field accepts; of a union, what each of its branches accepts."""
    return " or ".join(dict.fromkeys(_branch(each) for each in (entry, *others)))


def _branch(entry: Any) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind in BOUNDS:
        words, name = BOUNDS[kind]
        return f"{words} {context[name]}"
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "literal_error":
        return _one_of(context["expected"].replace(" or ", ", "), entry["input"])
    if kind == "union_tag_invalid":
        return _one_of(context["expected_tags"], context["tag"])
    return KINDS.get(kind) or entry["msg"]


def _one_of(expected: str, given: Any) -> str:
    names = [name.strip("' ") for name in expected.split(",")]
    near = nearest(given, names) if isinstance(given, str) else None
    hint = f'; did you mean "{near}"?' if near else ""
    return "one of " + ", ".join(f'"{name}"' for name in names) + hint
