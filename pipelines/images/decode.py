"""From an opened image to 8-bit RGB pixels, no larger than needed, in stored orientation.

JPEGs of the usual kinds go through libjpeg-turbo, which decodes at 1/2, 1/4 or 1/8 of the size for a
fraction of the time. Its other scales (n/8) are not used: they take longer than the next power of two,
and cost 6 to 8 dB against a full decode. Everything else, and what libjpeg-turbo does not accept (CMYK, odd
subsampling), goes through Pillow; both mean the same pixels (see `schemas.images`).

Memory for pixels is reused by each thread. Arrays of a megabyte that are allocated and freed per image are
returned to the system each time, and their pages are faulted in again: up to 0.7 of the 3 ms that a photo
of 0.3 megapixels took from link to JPEG.
"""

import re
import threading

import numpy as np
import simplejpeg

from schemas.images import ImageError, OpenedImage

_KEPT_BYTES = 32 << 20
"""Larger arrays are allocated when needed and freed afterwards."""

_local = threading.local()

_TURBO_COLORSPACES = frozenset({"YCbCr", "RGB", "Gray"})
_STRAY_BYTES = re.compile(r"^Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9$")
_HARMLESS_STRAY_BYTES = 16


def turbo_colorspace(image: OpenedImage) -> str:
    """The colour space of a JPEG as libjpeg-turbo sees it; empty if it cannot decode the image.

    Raises:
        ImageError: image_corrupt.
    """
    if image.format != "jpeg":
        return ""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(image.data)
    except ValueError:
        return ""
    if (width, height) != (image.width, image.height):
        raise ImageError("image_corrupt", "two different sizes in the header")
    return colorspace if colorspace in _TURBO_COLORSPACES else ""


def decode(image: OpenedImage, colorspace: str, min_width: int, min_height: int) -> np.ndarray:
    """Pixels (height, width, 3), uint8; of a JPEG, the smallest scale that is at least as large as asked.

    They hold until the next call in the same thread.

    Args:
        image: the opened image.
        colorspace: of `turbo_colorspace`.
        min_width: pixels.
        min_height: pixels.

    Raises:
        ImageError: image_truncated, image_corrupt or image_format_unsupported.
    """
    if colorspace:
        return _decode_turbo(image.data, *_scaled(image, min_width, min_height))
    return np.asarray(image.decode_stored((min_width, min_height)))


def scratch(name: str, num_bytes: int) -> np.ndarray:
    """`num_bytes` of uint8, uninitialised; the next call with `name` in this thread returns the same memory."""
    if num_bytes > _KEPT_BYTES:
        return np.empty(num_bytes, np.uint8)
    kept: dict[str, np.ndarray] = _local.__dict__
    if name not in kept or kept[name].size < num_bytes:
        kept[name] = np.empty(num_bytes, np.uint8)
    return kept[name][:num_bytes]


def _scaled(image: OpenedImage, min_width: int, min_height: int) -> tuple[int, int]:
    """Width and height at the smallest of the scales 1, 1/2, 1/4 and 1/8 that is not below the minimum."""
    sizes = ((-(-image.width // n), -(-image.height // n)) for n in (8, 4, 2))
    fits = (size for size in sizes if size[0] >= min_width and size[1] >= min_height)
    return next(fits, (image.width, image.height))


def _decode_turbo(data: bytes, width: int, height: int) -> np.ndarray:
    """Pixels at the scale that has exactly this size."""
    buffer = scratch("decoded", width * height * 3)

    def turbo(is_strict: bool) -> np.ndarray:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, buffer=buffer, strict=is_strict
        )

    try:
        return turbo(True)
    except ValueError as error:
        stray = _STRAY_BYTES.match(str(error))
        if stray and int(stray.group(1)) <= _HARMLESS_STRAY_BYTES:
            return turbo(False)
        if str(error).startswith("Premature end"):
            raise ImageError("image_truncated") from None
        raise ImageError("image_corrupt") from None
