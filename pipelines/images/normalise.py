"""Images brought to one form: 8-bit RGB, upright, not larger than needed, bytes kept where they fit.

    normalise_image(data, ImageConfig(side=256)).data

The same bytes in give the same bytes out (with the same libraries).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from pipelines.core.pipeline import Reason
from pipelines.images.decode import check, decode, open_lazily, scratch
from pipelines.images.header import IMAGE_REASONS, ImageHeader, ImageRejected, read_header
from schemas.sample import Sample

__all__ = [
    "IMAGE_REASONS",
    "ImageConfig",
    "ImageContent",
    "ImageRejected",
    "NormalisedImage",
    "normalise_image",
]

PILLOW_MAX_PIXELS = 89_478_485
"""Where Pillow begins to warn of decompression bombs; `max_pixels` stays below it."""

_LINEAR_BELOW = 1.4

_FORMATS: dict[str, Literal["jpg", "png", "webp"]] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@dataclass(frozen=True)
class ImageConfig:
    """Which images are taken, and in what size they are kept."""

    side: int = 256
    """Pixels of the shorter side to which larger images are brought; aspect kept, never enlarged."""
    max_pixels: int = 50_000_000
    """Width x height above which an image is refused unseen. A decode takes up to 10 bytes a pixel."""
    min_side: int = 32
    """Pixels of the shorter side below which an image is refused: spacers, bullets, tracking pixels."""
    max_aspect: float = 10.0
    """Longer over shorter side above which an image is refused: rules and banners."""
    quality: int = 95
    """JPEG quality of what is encoded anew. Colour is halved in resolution (4:2:0), as is usual at 95."""

    def __post_init__(self) -> None:
        for name, (low, high, hint) in {
            "side": (8, 16_384, "pixels of the shorter side"),
            "max_pixels": (64, PILLOW_MAX_PIXELS, "pixels; above, Pillow sees an attack"),
            "min_side": (1, 16_384, "pixels of the shorter side"),
            "max_aspect": (1.0, 65_535.0, "longer side over shorter side"),
            "quality": (1, 100, "JPEG quality"),
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} {value!r} is not in {low:g}..{high:g}: {hint}")


@dataclass(frozen=True)
class NormalisedImage:
    """An encoded image of 8-bit RGB, upright; sizes in pixels."""

    data: bytes
    format: Literal["jpg", "png", "webp"]
    width: int
    height: int
    source_width: int
    """Of the image that came, upright."""
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

    def convert(self, body: bytes) -> Mapping[str, Any]:
        """The image in the form in which it is published; raises `Rejected`."""
        return vars(normalise_image(body, self.config))

    def published(self, sample: Sample) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The images of a published sample, each with the slot of its link."""
        slots = sample.meta.get("image_slot") or range(len(sample.images))
        for slot, image in zip(slots, sample.images, strict=True):
            sizes = {name: getattr(image, name) for name in ("format", "width", "height")}
            yield slot, {"data": image.image, **sizes}


def normalise_image(data: bytes, config: ImageConfig) -> NormalisedImage:
    """The image in `data` as it is published.

    Plain 8-bit RGB files (JPEG, PNG, WebP; upright, still, opaque) whose shorter side is not above
    `side` keep their bytes, once it is certain that they decode. Everything else becomes a JPEG:
    transparency on white, 16 bits scaled to 8, the first frame of an animation, orientation applied.

    Raises:
        ImageRejected: with a reason of `IMAGE_REASONS`.
    """
    header = _with_size(data, read_header(data), config)
    is_turned = header.orientation >= 5
    source = (header.height, header.width) if is_turned else (header.width, header.height)
    width, height = _fitted(header.width, header.height, config.side)
    if header.is_plain and (width, height) == (header.width, header.height):
        check(data, header)
        return NormalisedImage(data, _FORMATS[header.format], *source, *source)
    pixels = decode(data, header, width, height)
    if pixels.shape[:2] != (height, width):
        pixels = _shrunk(pixels, width, height)
    upright = np.ascontiguousarray(_turned(pixels, header.orientation))
    encoded = simplejpeg.encode_jpeg(upright, config.quality, "RGB", "420")
    height, width = upright.shape[:2]
    return NormalisedImage(encoded, "jpg", width, height, *source)


def _with_size(data: bytes, header: ImageHeader, config: ImageConfig) -> ImageHeader:
    """The header with a size that is within the limits, according to the decoder too."""
    if header.format == "tiff":
        header = replace(header, **_lazy_size(data, header))
    _check_size(header, config)
    if header.format in ("gif", "bmp"):  # a first frame may be larger than the header says
        header = replace(header, **_lazy_size(data, header))
        _check_size(header, config)
    return header


def _lazy_size(data: bytes, header: ImageHeader) -> dict[str, int]:
    width, height = open_lazily(data, header).size
    return {"width": width, "height": height}


def _check_size(header: ImageHeader, config: ImageConfig) -> None:
    width, height = header.width, header.height
    short, long = sorted((width, height))
    if short < 1:
        raise ImageRejected("image_corrupt", f"{width}x{height} pixels")
    if width * height > config.max_pixels:
        raise ImageRejected(
            "image_too_many_pixels", f"{width}x{height}, limit {config.max_pixels} pixels"
        )
    if short < config.min_side:
        raise ImageRejected("image_too_small", f"{width}x{height}, limit {config.min_side}")
    if long > config.max_aspect * short:
        raise ImageRejected("image_too_elongated", f"{width}x{height}, limit {config.max_aspect:g}")


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
    result = scratch(name, width * height * 3).reshape(height, width, 3)
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
