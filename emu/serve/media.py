"""Images and videos of requests: read from data URLs and the web, and checked by their headers before decoding."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emu.serve.backend import EncodedImage, EncodedVideo
from emu.serve.errors import ApiError
from emu.serve.limits import Limits
from schemas.images import ImageError, open_image

Fetch = Callable[[Sequence[str]], list[bytes | str]]
"""From URLs to the bytes of each, or the reason why there are none. Called in a thread."""

# RFC 2397: a media type, parameters whose values may be quoted, and `;base64`; as in browsers with spaces around it
DATA_URL = re.compile(r'data:[^;,"]*(?:;(?:[^;,"]|"[^"]*")*)*?; *base64 *,', re.IGNORECASE)
MAX_DATA_URL_HEAD = 4096
PIECE = 1 << 16
"""Characters of base64 that are decoded at once, a multiple of 4: other threads wait for the interpreter meanwhile."""
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]|=(?!=?$)")
TOO_MANY_PIXELS = "image_too_many_pixels"
URL_SAFE = "write + and / for - and _"


@dataclass(frozen=True)
class MediaSource:
    """Where an image or a video stands in a request: the field and its URL."""

    param: str
    url: str
    num_frames: int = 0
    """Frames to take of a video; 0 for an image."""


Media = Mapping[str, EncodedImage | EncodedVideo]
"""Images and videos by the field that they came in."""


def read_media(sources: Sequence[MediaSource], limits: Limits, fetch: Fetch | None) -> Media:
    """What the URLs hold; those with web addresses are fetched together. Raises `ApiError`."""
    check_number(sum(source.num_frames or 1 for source in sources), limits)
    local = [source for source in sources if not is_web_url(source.url)]
    web = [source for source in sources if is_web_url(source.url)]
    bodies = {source.param: data_of_url(source, limits) for source in local}
    bodies |= zip([source.param for source in web], fetch_bodies(web, fetch), strict=True)
    pixels = PixelCount(limits)
    media: dict[str, EncodedImage | EncodedVideo] = {}
    for source in sources:
        data = bodies[source.param]
        if source.num_frames:
            _check_bytes(len(data), source, limits)
            media[source.param] = EncodedVideo(data, source.param, source.num_frames)
        else:
            media[source.param] = pixels.checked(data, source.param)
    return media


def check_number(number: int, limits: Limits, param: str = "messages") -> None:
    """Raises `ApiError` for more images than a request may hold."""
    if number > limits.max_images:
        message = f"the {param} hold {number} images, the limit is {limits.max_images}"
        raise ApiError(413, message, param, "too_many_images")


@dataclass
class PixelCount:
    """Checks the images of one request, one by one and all together."""

    limits: Limits
    total: int = 0

    def checked(self, data: bytes, param: str) -> EncodedImage:
        """The image; raises `ApiError` if it is beyond a limit or of an unknown format. Reads its header only."""
        _check_bytes(len(data), MediaSource(param, ""), self.limits)
        try:
            opened = open_image(data, self.limits.max_image_pixels)
        except ImageError as error:
            raise _refused(error, param) from error
        self.total += opened.width * opened.height
        if self.total > self.limits.max_total_pixels:
            message = (
                f"the images up to {param} have {self.total} pixels together, the limit is "
                f"{self.limits.max_total_pixels}; send smaller or fewer images"
            )
            raise ApiError(413, message, param, "image_too_large")
        return EncodedImage(data, param)


def _refused(error: ImageError, param: str) -> ApiError:
    is_large = error.reason == TOO_MANY_PIXELS
    status, code = (413, "image_too_large") if is_large else (422, "invalid_image")
    return ApiError(status, str(error.at(param)), param, code)


def is_web_url(url: str) -> bool:
    """Whether the URL has to be fetched."""
    return url[:8].lower().startswith(("http://", "https://"))


def data_of_url(source: MediaSource, limits: Limits) -> bytes:
    """The bytes of a `data:…;base64,` URL; raises `ApiError`, for too many pixels before most of it is read."""
    url, param = source.url, source.param
    match = DATA_URL.match(url, 0, MAX_DATA_URL_HEAD)
    if match is None:
        begin = f"starts with {url[:30]!r}" if url else "is empty"
        kind = "video/mp4" if source.num_frames else "image/png"
        message = f"{param} {begin}; give data:{kind};base64,… or an http(s) URL"
        raise ApiError(400, message, param, "invalid_image_url")
    encoded = url[match.end() :]
    _check_bytes((len(encoded) - 4) * 3 // 4, source, limits)
    try:
        begin = binascii.a2b_base64(encoded[:PIECE], strict_mode=True)
        if len(encoded) <= PIECE:
            return begin
        if not source.num_frames:
            _check_begin(begin, param, limits)
        return begin + _decoded(encoded, PIECE)
    except (binascii.Error, ValueError) as error:
        message = f"{param} is not base64: {_base64_error(encoded)}"
        raise ApiError(400, message, param, "invalid_base64") from error


def _check_begin(begin: bytes, param: str, limits: Limits) -> None:
    """Raises `ApiError` if the first bytes of an image tell that it has too many pixels."""
    try:
        open_image(begin, limits.max_image_pixels)
    except ImageError as error:  # others may come of what is missing here
        if error.reason == TOO_MANY_PIXELS:
            raise _refused(error, param) from error


def _decoded(encoded: str, start: int) -> bytes:
    """The bytes of base64 from this index on; raises ValueError for what is none, also for padding inside it."""
    if encoded[start - 1] == "=":
        raise ValueError("padding inside")
    pieces = []
    for begin in range(start, len(encoded), PIECE):
        end = begin + PIECE
        if end < len(encoded) and encoded[end - 1] == "=":
            raise ValueError("padding inside")
        pieces.append(binascii.a2b_base64(encoded[begin:end], strict_mode=True))
    return b"".join(pieces)


def _base64_error(encoded: str) -> str:
    """What is wrong with text that cannot be decoded, and how to correct it."""
    wrong = NOT_BASE64.search(encoded)
    if wrong is None:
        return f"{len(encoded)} characters are truncated; pad with = to a multiple of 4"
    hints = {"-": URL_SAFE, "_": URL_SAFE, "%": "send it without percent escapes"}
    hint = "send it in one line" if wrong[0].isspace() else hints.get(wrong[0], "is it complete?")
    return f"it holds {wrong[0]!r} at index {wrong.start()}; {hint}"


def fetch_bodies(sources: Sequence[MediaSource], fetch: Fetch | None) -> list[bytes]:
    """The bytes behind web addresses; raises `ApiError` for the first that cannot be fetched."""
    if not sources:
        return []
    if fetch is None:
        param, url = sources[0].param, sources[0].url
        message = (
            f"{param} is the web address {url[:80]!r}; this server fetches no images, "
            "send a data: URL (or start the server with --fetch-images)"
        )
        raise ApiError(400, message, param, "fetching_disabled")
    bodies: list[bytes] = []
    for source, body in zip(sources, fetch([source.url for source in sources]), strict=True):
        if isinstance(body, str):
            message = f"{source.param}: {source.url[:200]!r} could not be fetched: {body}"
            raise ApiError(400, message, source.param, "image_not_fetched")
        bodies.append(body)
    return bodies


def _check_bytes(num_bytes: int, source: MediaSource, limits: Limits) -> None:
    kind, limit = ("an image", limits.max_image_bytes)
    if source.num_frames:
        kind, limit = "a video", limits.max_video_bytes
    if num_bytes > limit:
        message = f"{kind} has {num_bytes} bytes, the limit is {limit}"
        raise ApiError(413, message, source.param, "image_too_large")
