"""A 64-bit perceptual hash of an image: equal or near for copies that were scaled, encoded again or adjusted.

The hash of ImageHash's `phash` (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010),
bit
for bit: the image in grey at 32 x 32 pixels, its discrete cosine transform, of which the 8 x 8 lowest frequencies are
compared with their median. Copies of an image differ in a few bits, different images in about 32.
"""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image
from scipy.fft import dct

SIDE, LOW = 32, 8
NUM_BITS = LOW * LOW


def perceptual_hash(image: bytes) -> int:
    """The hash of an encoded image, from 0 to 2^64 - 1; the first row of frequencies is in the highest bits.

    Raises:
        OSError: the image cannot be decoded; published images can.
    """
    with Image.open(io.BytesIO(image)) as opened:
        return hash_of_pixels(opened)


def hash_of_pixels(image: Image.Image) -> int:
    """The hash of a decoded image."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(small).astype(np.float64)
    low = np.asarray(dct(dct(pixels, axis=0), axis=1))[:LOW, :LOW]
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "big")


def hash_from_hex(text: str) -> int:
    """A hash from its 16 hexadecimal digits, as ImageHash prints it; raises `ValueError` for anything else."""
    if len(text) != NUM_BITS // 4:
        raise ValueError(f"{text!r} is no perceptual hash: give {NUM_BITS // 4} hexadecimal digits")
    return int(text, 16)


def distances(value: int, others: np.ndarray) -> np.ndarray:
    """In how many bits a hash differs from each of others (uint64)."""
    return np.bitwise_count(others ^ np.uint64(value))


def as_array(hashes: Iterable[int]) -> np.ndarray:
    """Hashes as an array of uint64."""
    return np.fromiter(hashes, np.uint64)
