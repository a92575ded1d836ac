"""Images in the form in which they are published: 8-bit RGB, upright, not larger than needed.

    normalise_image(data, ImageConfig(side=256)).data

Equal bytes in give equal bytes out (with the same libraries).

JPEGs of the usual kinds go through libjpeg-turbo, which decodes at 1/2, 1/4 or 1/8 of the size for a
fraction of the time. Its other scales (n/8) are not used: they take longer than the next power of two,
and cost 6 to 8 dB against a full decode. Everything else, and what libjpeg-turbo does not accept (CMYK, odd
subsampling), goes through Pillow; both mean the same pixels (see `schemas.images`).

Memory for pixels is reused by each thread. Arrays of a megabyte that are allocated and freed per image are
returned to the system each time, and their pages are faulted in again: up to 0.7 of the 3 ms that a photo
of 0.3 megapixels took from link to JPEG.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
from pydantic import Field

from pipelines.core.pipeline import Reason, Rejected
from pipelines.images.metadata import without_metadata
from schemas import jpeg
from schemas.images import ImageError, OpenedImage, open_image
from schemas.sample import Sample
from schemas.validation import Checked

IMAGE_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "html_not_image": Reason("The body is HTML or XML, not an image."),
        "not_an_image": Reason("The bytes do not start like any known image format."),
        "image_format_unsupported": Reason(
            "The image format, colour mode or bit depth is not supported."
        ),
        "image_too_many_pixels": Reason("The header states more pixels than `max_pixels`."),
        "image_too_many_scans": Reason(
            "A progressive JPEG has so many scans that decoding would be too expensive."
        ),
        "image_too_small": Reason("The shorter side is below `min_side`."),
        "image_too_elongated": Reason(
            "The ratio of the longer to the shorter side exceeds `max_aspect`."
        ),
        "image_truncated": Reason("The image data ends too early.", retryable=True),
        "image_corrupt": Reason("The image data is damaged."),
    }
)
"""Why a fetched body is not an image that is kept."""

PILLOW_MAX_PIXELS = 89_478_485
"""Where Pillow begins to warn of decompression bombs; `max_pixels` stays below it."""

KEPT_BYTES_PER_PIXEL = 4
"""Raw RGB takes 3, and a PNG of noise hardly more."""
KEPT_PROFILE_BYTES = 1 << 16

_LINEAR_BELOW = 1.4

_KEPT_BYTES = 32 << 20
"""Larger arrays are allocated when needed and freed afterwards."""

_local = threading.local()

_FORMATS: dict[str, Literal["jpg", "png", "webp"]] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@dataclass(frozen=True)
class ImageConfig(Checked):
    """Which images are taken, and in what size they are kept."""

    side: Annotated[int, Field(ge=8, le=16_384, description="pixels of the shorter side")] = 256
    """Pixels of the shorter side to which larger images are resized; aspect kept, never enlarged."""
    max_pixels: Annotated[
        int, Field(ge=64, le=PILLOW_MAX_PIXELS, description="pixels; Pillow warns above")
    ] = 50_000_000
    """Width x height above which an image is refused without decoding. A decode takes up to 10 bytes per pixel."""
    min_side: Annotated[int, Field(ge=1, le=16_384, description="pixels of the shorter side")] = 32
    """Pixels of the shorter side below which an image is refused: spacers, bullets, tracking pixels."""
    max_aspect: Annotated[
        float, Field(ge=1.0, le=65_535.0, description="longer side over shorter side")
    ] = 10.0
    """Longer over shorter side above which an image is refused: rules and banners."""
    quality: Annotated[int, Field(ge=1, le=100, description="JPEG quality")] = 95
    """JPEG quality of re-encoded images. Colour has half the resolution (4:2:0), as is usual at 95."""


class NormalisedImage(NamedTuple):
    """An encoded image of 8-bit RGB, upright; sizes in pixels."""

    data: bytes
    format: Literal["jpg", "png", "webp"]
    width: int
    height: int
    source_width: int
    """Of the original image, upright."""
    source_height: int


@dataclass(frozen=True)
class ImageContent:
    """Images as what links lead to: the column `images` of a table.

    | field                       | type         | meaning                                                  |
    |-----------------------------|--------------|----------------------------------------------------------|
    | slot                        | int32        | number of the link in its record                         |
    | data                        | large_binary | encoded bytes                                            |
    | format                      | string       | `jpg`, `png` or `webp`                                   |
    | width, height               | int32        | pixels                                                   |
    | source_width, source_height | int32        | pixels before; null for one taken from a published shard |
    """

    config: ImageConfig

    column = "images"
    is_keyed = False
    accept = "image/jpeg,image/png,image/webp,image/gif;q=0.9,image/*;q=0.8,*/*;q=0.5"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The fields of one image."""
        sizes = ("width", "height", "source_width", "source_height")
        encoded = (pa.field("data", pa.large_binary()), pa.field("format", pa.string()))
        return (*encoded, *(pa.field(name, pa.int32()) for name in sizes))

    @property
    def reasons(self) -> Mapping[str, Reason]:
        """Why a body is not an image that is kept."""
        return IMAGE_REASONS

    def convert(self, body: bytes, key: str = "") -> Mapping[str, Any]:
        """The image in the form in which it is published; raises `Rejected`."""
        return normalise_image(body, self.config)._asdict()

    def num_bytes(self, value: Mapping[str, Any]) -> int:
        """Bytes of an encoded image."""
        return len(value["data"])

    def published(self, sample: Sample) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The images of a published sample, each with the slot of its link."""
        slots = sample.meta.get("image_slot") or range(len(sample.images))
        for slot, image in zip(slots, sample.images, strict=True):
            sizes = {name: getattr(image, name) for name in ("format", "width", "height")}
            yield slot, {"data": image.image, **sizes}


def normalise_image(data: bytes, config: ImageConfig) -> NormalisedImage:
    """The image in `data` as it is published.

    Plain 8-bit RGB files (JPEG, PNG, WebP; upright, still, opaque) whose shorter side is not above
    `side` keep their bytes, once they have been decoded as a check, without the faults that lose no pixel and without
    metadata (`pipelines.images.metadata`), unless they have more than `max_kept_bytes`. Everything else becomes a JPEG
    of the pixels that `schemas.images` defines.

    Raises:
        Rejected: with a reason of `IMAGE_REASONS`.
    """
    try:
        image = open_image(data, config.max_pixels)
        _check_shape(image.width, image.height, config)
        return _normalised(image, config)
    except ImageError as error:
        raise Rejected(error.reason, error.detail) from None


def _normalised(image: OpenedImage, config: ImageConfig) -> NormalisedImage:
    width, height = _fitted(image.width, image.height, config.side)
    is_small = (width, height) == (image.width, image.height)
    is_plain = image.is_plain and (
        image.jpeg_header is None or image.jpeg_header.colorspace == "RGB"
    )
    # A file that keeps its bytes is only checked, which is much cheaper at the smallest scale of a JPEG.
    if is_small and is_plain and image.orientation == 1:
        _, data = decode(image, 1, 1)
        kept = without_metadata(data, image.format)
        if kept is not None and len(kept) <= max_kept_bytes(width, height):
            return NormalisedImage(kept, _FORMATS[image.format], width, height, width, height)
    pixels, _ = decode(image, width, height)
    if pixels.shape[:2] != (height, width):
        pixels = _shrunk(pixels, width, height)
    is_turned = image.orientation >= 5
    source = (image.height, image.width) if is_turned else (image.width, image.height)
    return _encoded(_turned(pixels, image.orientation), source, config)


def normalise_pixels(
    pixels: np.ndarray, config: ImageConfig, sample_aspect: float = 1.0
) -> NormalisedImage:
    """Pixels (height, width, 3), uint8, RGB, as they are published: resized to `side` where they are larger, a JPEG.

    Args:
        pixels: a tile of a sheet or a frame of a clip, upright.
        config: size and quality.
        sample_aspect: width over height of one pixel.
    """
    source_height, source_width = pixels.shape[:2]
    width, height = source_width, source_height
    if sample_aspect != 1.0:
        width, height = shown_size(width, height, sample_aspect)
    width, height = _fitted(width, height, config.side)
    if (width, height) != (source_width, source_height):
        pixels = _shrunk(pixels, width, height)
    return _encoded(pixels, (source_width, source_height), config)


class Tiles(NamedTuple):
    """Encoded images of 8-bit RGB, all of one size in pixels."""

    images: list[bytes]
    format: Literal["jpg", "png", "webp"]
    width: int
    height: int


def normalise_tiles(
    pixels: np.ndarray, width: int, height: int, num_tiles: int, config: ImageConfig
) -> Tiles:
    """The tiles of a sheet, row by row, each as `normalise_pixels` gives it.

    Tiles of storyboards are small, so what is done once for a row of them counts: its pixels are copied together, a
    line of a tile as one value.

    Args:
        pixels: of the sheet, (height, width, 3), uint8, RGB, contiguous; whole tiles wide and high.
        width: of a tile.
        height: of a tile.
        num_tiles: how many of them there are, at least one.
        config: size and quality.
    """
    num_columns = pixels.shape[1] // width
    line = np.dtype((np.void, 3 * width))
    lines = pixels.reshape(-1, num_columns * 3 * width).view(line)
    row = _scratch("tiles", num_columns * height * width * 3)
    tiles = list(row.reshape(num_columns, height, width, 3))
    target = _fitted(width, height, config.side)
    images: list[bytes] = []
    for first in range(0, num_tiles, num_columns):
        top = first // num_columns * height
        np.copyto(row.view(line).reshape(num_columns, height), lines[top : top + height].T)
        for tile in tiles[: num_tiles - first]:
            if target == (width, height):
                images.append(simplejpeg.encode_jpeg(tile, config.quality, "RGB", "420"))
            else:
                images.append(normalise_pixels(tile, config).data)
    return Tiles(images, "jpg", *target)


def shown_size(width: int, height: int, sample_aspect: float) -> tuple[int, int]:
    """Width and height in square pixels: the axis with more samples is shrunk, none is enlarged."""
    shown = round(width * min(sample_aspect, 1.0)), round(height / max(sample_aspect, 1.0))
    return max(shown[0], 1), max(shown[1], 1)


def _encoded(pixels: np.ndarray, source: tuple[int, int], config: ImageConfig) -> NormalisedImage:
    height, width = pixels.shape[:2]
    if not pixels.flags.c_contiguous:  # a tile of a sheet, or turned
        whole = _scratch("encoded", pixels.size).reshape(pixels.shape)
        np.copyto(whole, pixels)
        pixels = whole
    encoded = simplejpeg.encode_jpeg(pixels, config.quality, "RGB", "420")
    return NormalisedImage(encoded, "jpg", width, height, *source)


def max_kept_bytes(width: int, height: int) -> int:
    """Bytes above which a file does not keep its bytes: more than its pixels and a colour profile can need."""
    return KEPT_BYTES_PER_PIXEL * width * height + KEPT_PROFILE_BYTES


def decode(image: OpenedImage, min_width: int, min_height: int) -> tuple[np.ndarray, bytes]:
    """Pixels (height, width, 3), uint8; of a JPEG, the smallest scale that is at least as large as asked.

    They hold until the next call in the same thread. Beside them the bytes of the image, without harmless faults.

    Args:
        image: the opened image.
        min_width: pixels.
        min_height: pixels.

    Raises:
        ImageError: image_truncated, image_corrupt or image_format_unsupported.
    """
    header = image.jpeg_header
    if header is not None and header.colorspace == "RGB":
        width, height = _scaled(image, min_width, min_height)
        buffer = _scratch("decoded", width * height * 3)
        return jpeg.decode(image.data, header, width, height, buffer)
    return np.asarray(image.decode_stored((min_width, min_height))), image.data


def _scratch(name: str, num_bytes: int) -> np.ndarray:
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


def check_size(width: int, height: int, config: ImageConfig) -> None:
    """Raise `ImageError` for an image of a size that is not taken."""
    if width * height > config.max_pixels:
        raise ImageError("image_too_many_pixels", f"{width}x{height}, limit {config.max_pixels}")
    _check_shape(width, height, config)


def _check_shape(width: int, height: int, config: ImageConfig) -> None:
    """Beside the pixel limit, which holds before anything else."""
    short, long = min(width, height), max(width, height)
    if short < config.min_side:
        raise ImageError("image_too_small", f"{width}x{height}, limit {config.min_side}")
    if long > config.max_aspect * short:
        raise ImageError("image_too_elongated", f"{width}x{height}, limit {config.max_aspect:g}")


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with the shorter one brought down to `side`."""
    short = min(width, height)
    if short <= side:
        return width, height
    return max(side, round(width * side / short)), max(side, round(height * side / short))


def _shrunk(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels (height, width, 3), each the mean over the area that it covers.

    OpenCV takes long for areas of less than 2 x 2 pixels. Below 1.4, two samples a side, taken linearly,
    are as good (PSNR against Pillow's Lanczos and bicubic on photos); below 2, the mean of 2 x 2 such
    samples comes within 1 dB of the area in half the time.
    """
    cv2.setNumThreads(1)  # a pool of threads costs more than it gains on images of this size
    ratio = max(pixels.shape[0] / height, pixels.shape[1] / width)
    if ratio < _LINEAR_BELOW:
        return _resized(pixels, width, height, cv2.INTER_LINEAR, "resized")
    if ratio < 2.0:
        pixels = _resized(pixels, 2 * width, 2 * height, cv2.INTER_LINEAR, "between")
    return _resized(pixels, width, height, cv2.INTER_AREA, "resized")


def _resized(
    pixels: np.ndarray, width: int, height: int, interpolation: int, name: str
) -> np.ndarray:
    result = _scratch(name, width * height * 3).reshape(height, width, 3)
    return np.asarray(cv2.resize(pixels, (width, height), dst=result, interpolation=interpolation))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (height, width, 3) as seen, by EXIF orientation (EXIF 2.32, section 4.6.4.A)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flip_x, flip_y = {
        2: (True, False),
        3: (True, True),
        4: (False, True),
        6: (True, False),
        7: (True, True),
        8: (False, True),
    }.get(orientation, (False, False))
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
