"""Request bodies: read up to a limit and a time, then decoded as strict JSON or as a multipart form.

A body whose declared length is above the limit is refused before a byte of it is read; the connection is closed, so
that nobody waits for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from emu.serve.deadline import Deadline
from emu.serve.errors import ApiError
from emu.serve.limits import Limits
from schemas import strict_json
from schemas.strict_json import JsonError

MAX_DIGITS = 100
"""Of a whole number in a body: the largest that any field accepts has 19."""
MAX_FIELDS = 1000
"""Of one object in a body; an error is made for each that is not known."""
CODES = {
    "bad_unicode": "invalid_unicode",
    "doubled_field": "doubled_key",
    "not_finite": "invalid_value",
    "number_too_long": "invalid_value",
    "too_many_fields": "above_limit",
}
"""The `code` of an error by the reason of the JSON reader, where it is not `invalid_json`."""
MAX_FORM_FIELDS = 64
FEW = 1000


@dataclass(frozen=True)
class Form:
    """A multipart form: its texts and its files, each by name in the order of arrival."""

    texts: Mapping[str, str]
    files: tuple[tuple[str, bytes], ...]


async def read_json(http: Request, limits: Limits) -> Any:
    """The decoded body; raises `ApiError`."""
    check_content(http, "application/json")
    body = await read_body(http, limits)
    check_values(body, limits.max_body_values)
    return decode_json(body)


async def read_form(http: Request, limits: Limits) -> Form:
    """The fields of a `multipart/form-data` body; raises `ApiError`."""
    check_content(http, "multipart/form-data")
    body = await read_body(http, limits)

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(
        http.headers,
        chunks(),  # pyright: ignore[reportArgumentType]  # an iterator is all that is used
        max_files=limits.max_images + 2,
        max_fields=MAX_FORM_FIELDS,
        max_part_size=limits.max_body_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeDecodeError) as error:
        detail = getattr(error, "message", str(error))
        raise ApiError(400, f"the form cannot be read: {detail}", code="invalid_form") from error
    texts: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((name, await value.read()))
            elif name in texts:
                raise ApiError(400, f"{name} appears twice; give it once", name, "doubled_key")
            else:
                texts[name] = value
    finally:
        await form.close()
    return Form(texts, tuple(files))


def check_content(http: Request, wanted: str) -> None:
    """Raises `ApiError` for a body of another type, or that is compressed."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError(415, f"the content type is {kind!r}, send {wanted}")
    encoding = http.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, f"the content encoding is {encoding!r}, send the body uncompressed")


async def read_body(http: Request, limits: Limits) -> bytes:
    """The body, of which at most the limit is read."""
    limit = limits.max_body_bytes
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    num_bytes = 0
    deadline = Deadline(asyncio.get_running_loop().time() + limits.body_timeout_s)
    try:
        with deadline:
            async for chunk in http.stream():
                chunks.append(chunk)
                num_bytes += len(chunk)
                if num_bytes > limit:
                    raise _too_large(limit)
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.body_timeout_s:g} s"
        raise ApiError(408, message, code="timeout") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the body ended early", code="incomplete_body") from error
    finally:
        deadline.close()
    return b"".join(chunks)


def check_values(body: bytes, limit: int) -> None:
    """Raises `ApiError` for a body of more values than any request needs, which would take seconds to check."""
    if len(body) <= limit:
        return
    number = sum(count(body, byte) for byte in (b",", b"[", b"{"))
    if number > limit:
        message = f"the body has {number:,} commas and opening brackets, the limit is {limit:,}"
        raise ApiError(413, message, code="too_many_values")


def count(body: bytes, byte: bytes) -> int:
    """How often the byte occurs; `bytes.count` alone takes 30 times as long for the few of an image in base64."""
    index = -1
    for number in range(FEW):
        index = body.find(byte, index + 1)
        if index < 0:
            return number
    return FEW + body.count(byte, index + 1)


def decode_json(body: bytes) -> Any:
    """The value of a JSON document; raises `ApiError` with the field that cannot be accepted."""
    try:
        return strict_json.loads(body, MAX_DIGITS, max_fields=MAX_FIELDS)
    except JsonError as error:
        code = CODES.get(error.reason, "invalid_json")
        if error.path is not None:
            message = f"{error.field or 'the body'} {error.detail}"
            raise ApiError(400, message, error.field, code) from error
        reason = error.detail if body else "it is empty (0 bytes)"
        raise ApiError(400, f"the body is not JSON: {reason}", code=code) from error


def _too_large(limit: int) -> ApiError:
    message = f"the body has more than {limit} bytes, which is the limit"
    return ApiError(413, message, code="body_too_large")
