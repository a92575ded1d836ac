"""Where the images of a request come from: `data:` URLs, and the web where the server fetches."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence

from emu.generate.pictures import PictureError, PictureTooLarge, read_header
from emu.serve.errors import refuse
from emu.serve.limits import Limits

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
