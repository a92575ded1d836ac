"""Memory for pixels that is used again and again by one thread.

Arrays of a megabyte that are allocated and freed for each image go back to the system each time, and their
pages are faulted in anew: up to 0.7 of the 3 ms that a photo of 0.3 megapixels took from link to JPEG.

From encoded bytes to 8-bit RGB pixels, no larger than needed, in stored orientation.

JPEGs of the usual kinds go through libjpeg-turbo, which decodes at 1/2, 1/4 or 1/8 of the size for a
fraction of the time. Its other scales (n/8) are left alone: they take longer than the next power of two,
and cost 6 to 8 dB against a full decode. Everything else, and what libjpeg-turbo declines (CMYK, odd
subsampling), goes through Pillow.

ICC profiles are not applied: pixels are taken as sRGB, as the tools do that CLIP was trained with.
"""

import io
import re
import threading

import numpy as np
import simplejpeg
from PIL import Image

from pipelines.images.header import ImageHeader, ImageRejected

_KEPT_BYTES = 32 << 20
"""Larger arrays are allocated when they are needed, and given back."""

_local = threading.local()


def scratch(name: str, num_bytes: int) -> np.ndarray:
    """`num_bytes` of uint8, uninitialised; the next call with `name` in this thread hands out the same ones."""
    if num_bytes > _KEPT_BYTES:
        return np.empty(num_bytes, np.uint8)
    kept: dict[str, np.ndarray] = _local.__dict__
    if name not in kept or kept[name].size < num_bytes:
        kept[name] = np.empty(num_bytes, np.uint8)
    return kept[name][:num_bytes]


_TURBO_COLORSPACES = frozenset({"YCbCr", "RGB", "Gray"})
_PILLOW_NAMES = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
}
_STRAY_BYTES = re.compile(r"^Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9$")
_HARMLESS_STRAY_BYTES = 16
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def decode(data: bytes, header: ImageHeader, min_width: int, min_height: int) -> np.ndarray:
    """Pixels (height, width, 3), uint8; of a JPEG, the smallest scale that is at least as large as asked.

    They hold until the next call in the same thread.

    Raises:
        ImageRejected: image_truncated, image_corrupt or image_format_unsupported.
    """
    if header.format == "jpeg" and header.colorspace in _TURBO_COLORSPACES:
        return _decode_turbo(data, *_scaled(header, min_width, min_height))
    return _decode_pillow(data, header, min_width, min_height)


def check(data: bytes, header: ImageHeader) -> None:
    """Nothing, if the pixels could be decoded; much cheaper than decoding for a JPEG.

    Raises:
        ImageRejected: as `decode`.
    """
    decode(data, header, 1, 1)


def open_lazily(data: bytes, header: ImageHeader) -> Image.Image:
    """A Pillow image whose size is known and whose pixels are not decoded yet.

    Raises:
        ImageRejected: image_corrupt; image_too_many_pixels from Pillow's own limit.
    """
    try:
        return Image.open(io.BytesIO(data), formats=[_PILLOW_NAMES[header.format]])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRejected("image_too_many_pixels", "above the decoder's own limit") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged headers
        raise _damaged(error) from None


def _scaled(header: ImageHeader, min_width: int, min_height: int) -> tuple[int, int]:
    """Width and height at the smallest of the scales 1, 1/2, 1/4 and 1/8 that is not below the minimum."""
    sizes = ((-(-header.width // n), -(-header.height // n)) for n in (8, 4, 2))
    fits = (size for size in sizes if size[0] >= min_width and size[1] >= min_height)
    return next(fits, (header.width, header.height))


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
            raise ImageRejected("image_truncated") from None
        raise ImageRejected("image_corrupt") from None


def _decode_pillow(data: bytes, header: ImageHeader, min_width: int, min_height: int) -> np.ndarray:
    image = open_lazily(data, header)
    try:
        if header.format == "jpeg":
            image.draft(None, (min_width, min_height))
        image.load()
        return _to_rgb(image)
    except ImageRejected:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged data
        raise _damaged(error) from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        eight_bit = ((grey + 128) // 257).astype(np.uint8)  # 65,535 = 255 x 257
        return np.repeat(eight_bit[:, :, np.newaxis], 3, axis=2)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return np.asarray(white)
    if image.mode in _PLAIN_MODES:
        return np.asarray(image.convert("RGB"))
    raise ImageRejected("image_format_unsupported", f"pixels of mode {image.mode}")


def _damaged(error: Exception) -> ImageRejected:
    """Our own words: messages of decoders hold object addresses and positions."""
    is_short = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return ImageRejected("image_truncated" if is_short else "image_corrupt")
