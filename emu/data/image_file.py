"""A picture that a person sends, as 8-bit RGB: sniffed, capped before decoding, turned upright."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
MAX_PIXELS = 64_000_000  # decoded: about 200 MB at 3 bytes a pixel


class PictureError(ValueError):
    """Bytes that are not a picture that can be read."""


class PictureTooLarge(PictureError):
    """A picture with more pixels than the limit; nothing was decoded."""


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture of encoded bytes, of which only the header has been read.

    Raises `PictureError` for unknown bytes and `PictureTooLarge` for too many pixels.
    """
    if not data:
        raise PictureError("the picture is empty (0 bytes)")
    try:
        picture = Image.open(io.BytesIO(data), formats=list(FORMATS))
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(f"the picture is too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise PictureError(
            f"{len(data)} bytes that start with {data[:8]!r} are no picture; "
            f"give one of {', '.join(FORMATS)}"
        ) from error
    num_pixels = picture.width * picture.height
    if num_pixels > max_pixels:
        raise PictureTooLarge(
            f"the picture has {picture.width} x {picture.height} = {num_pixels} pixels, "
            f"the limit is {max_pixels}"
        )
    return picture


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB picture of encoded bytes; raises as `read_header` does, and for damaged data."""
    picture = read_header(data, max_pixels)
    try:
        picture.load()
        return to_rgb(picture)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise PictureError(f"the {picture.format} picture is damaged: {error}") from error


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB picture of a file."""
    return decode_picture(path.read_bytes(), max_pixels)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture upright (EXIF), 8 bits a channel, transparency on white, as RGB."""
    picture = upright(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = picture.convert("I").point(lambda level: level / 257).convert("L")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture.convert("RGB")


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; one whose EXIF cannot be read stands as it is, as in browsers."""
    try:
        return ImageOps.exif_transpose(picture)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return picture


def to_png(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
