"""What is wrong with the body of a request: the field, its value, what it may be."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request

from emu.serve.errors import ApiError, refuse
from schemas import strict_json
from schemas.strict_json import JsonError

MAX_DIGITS = 100
"""Of a whole number: the largest that any field takes has 19."""
MAX_SHOWN = 60
"""Characters of a value that an error repeats."""
CODES = {
    "bad_unicode": "invalid_unicode",
    "doubled_field": "doubled_key",
    "not_finite": "invalid_value",
    "number_too_long": "invalid_value",
}
"""The `code` of an error by the reason of the JSON reader, where it is not `invalid_json`."""


async def read_json(http: Request, limit: int) -> Any:
    """The decoded body, read no further than `limit` bytes."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refuse(415, f"the content type is {kind!r}, send application/json")
    encoding = http.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise refuse(415, f"the content encoding is {encoding!r}, send the body as it is")
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > limit:
            message = f"the body has more than {limit} bytes, which is the limit"
            raise refuse(413, message, code="body_too_large")
    return decode_json(bytes(body))


def decode_json(body: bytes) -> Any:
    """The value of a JSON document; raises `ApiError` with the field that cannot be accepted."""
    try:
        return strict_json.loads(body, MAX_DIGITS)
    except JsonError as error:
        code = CODES.get(error.reason, "invalid_json")
        if error.path is not None:
            message = f"{error.field or 'the body'} {error.detail}"
            raise refuse(400, message, error.field, code) from error
        reason = error.detail if body else "it is empty (0 bytes)"
        raise refuse(400, f"the body is not JSON: {reason}", code=code) from error


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


def explain(errors: Sequence[Any], known: dict[str, Sequence[str]]) -> ApiError:
    """The deepest of pydantic's complaints (a union complains for each of its branches) as an error.

    `known` names the fields of each object by the last name on its path, `""` for the body.
    """
    deepest = max(len(entry["loc"]) for entry in errors)
    first, *others = sorted(
        (entry for entry in errors if len(entry["loc"]) == deepest),
        key=lambda entry: (
            entry["type"] != "extra_forbidden"
        ),  # a misspelt name explains a missing one
    )
    path, kind = field_path(first["loc"]), first["type"]
    param = ".".join(path)
    if kind == "missing":
        return refuse(400, f"{param} is missing", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return unknown_field(path, known)
    if kind == "union_tag_not_found":
        param += f".{first['ctx']['discriminator'].strip(chr(39))}"
        return refuse(400, f"{param} is missing", param, "missing_required_parameter")
    value, wanted = first["input"], _wanted(first, [e for e in others if _same(e, first)])
    if kind == "union_tag_invalid":
        param, value = f"{param}.type", first["ctx"]["tag"]
    return refuse(400, f"{param} is {shown(value)}, give {wanted}", param, "invalid_value")


def unknown_field(path: Sequence[str], known: dict[str, Sequence[str]]) -> ApiError:
    """The error for a field that nobody knows, with the nearest known one."""
    name, parents = path[-1], [part for part in path[:-1] if not part.isdigit()]
    names = known[parents[-1] if parents else ""]
    near = nearest(name, names)
    hint = f"; did you mean {near}?" if near else ""
    if not near and parents:
        hint = f"; known are {', '.join(names)}"
    param = ".".join([*path[:-1], name[:MAX_SHOWN]])
    return refuse(400, f"{param} is not a known field{hint}", param, "unknown_parameter")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, or has it as one of its words."""
    name, known = name[:MAX_SHOWN].lower(), list(known)
    near = difflib.get_close_matches(name, known, 1)
    parts = [each for each in known if name in each.split("_")]
    return next(iter(near or parts), None)


def field_path(loc: Sequence[int | str]) -> list[str]:
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
    return parts


def _same(entry: Any, other: Any) -> bool:
    return field_path(entry["loc"]) == field_path(other["loc"])


def _wanted(entry: Any, others: Sequence[Any]) -> str:
    """What the field takes; of a union, what each of its branches takes."""
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


def _one_of(expected: str, tried: Any) -> str:
    names = [name.strip("' ") for name in expected.split(",")]
    near = nearest(tried, names) if isinstance(tried, str) else None
    hint = f'; did you mean "{near}"?' if near else ""
    return "one of " + ", ".join(f'"{name}"' for name in names) + hint
