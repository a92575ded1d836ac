"""Encoded images for tests, in every form that the web has."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

QUADRANTS = {  # as seen: top left, top right, bottom left, bottom right
    "top_left": (255, 0, 0),
    "top_right": (0, 160, 0),
    "bottom_left": (0, 0, 255),
    "bottom_right": (240, 240, 0),
}


def quadrants(width: int = 128, height: int = 96) -> Image.Image:
    """Four colours, so that every turn and flip shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = QUADRANTS["top_left"]
    pixels[: height // 2, width // 2 :] = QUADRANTS["top_right"]
    pixels[height // 2 :, : width // 2] = QUADRANTS["bottom_left"]
    pixels[height // 2 :, width // 2 :] = QUADRANTS["bottom_right"]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as a file of this form."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(orientation: int, form: str = "JPEG", **size: int) -> bytes:
    """The quadrants stored so that they are upright once `orientation` is applied."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = quadrants(**size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {} if form == "PNG" else {"quality": 95}
    stored = image.transpose(undo) if undo is not None else image
    return encoded(stored, form, exif=exif.tobytes(), **quality)


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, from values (height, width) or (height, width, channels)."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = values.astype(">u2").reshape(values.shape[0], -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(lines))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def pixels_of(data: bytes) -> np.ndarray:
    """Decoded pixels (height, width, 3), as they are stored."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def assert_upright(data: bytes, tolerance: int = 12) -> None:
    """The centres of the quadrants have their colours."""
    pixels = pixels_of(data)
    height, width = pixels.shape[:2]
    for name, colour in QUADRANTS.items():
        y = height // 4 if name.startswith("top") else 3 * height // 4
        x = width // 4 if name.endswith("left") else 3 * width // 4
        assert np.abs(pixels[y, x] - colour).max() <= tolerance, (name, pixels[y, x])
