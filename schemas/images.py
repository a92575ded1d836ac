"""Which pixels an encoded image means: one opener for the build, training and serving.

    image = open_image(data, max_pixels=50_000_000)   # format and size; nothing is decoded yet
    pixels = image.decode()                           # Pillow, 8-bit RGB, upright

- The format follows from the first bytes, never from a claimed type or a file name: JPEG, PNG, WebP, GIF, BMP, TIFF.
- Width and height are limited before decoding, and so is the number of scans of a JPEG.
- A file is damaged if pixels are lost; what only deviates from its format is removed (`schemas.jpeg_faults`,
  `schemas.image_files`).
- Pixels are 8-bit RGB: grey of 12 and 16 bits is scaled (its largest value becomes 255), transparency is composited on
  white, of an animation the first frame is taken. ICC profiles are not applied: pixels are taken as sRGB, as CLIP was
  trained. Signed and float samples are refused by name, since their black and white are not known.
- The EXIF orientation is applied, as browsers do; other hints (XMP) are ignored. EXIF that cannot be read is ignored.
"""

import functools
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from schemas import jpeg
from schemas.image_files import ImageError, damaged, format_of, read_png, too_large, whole_webp

__all__ = ["MAX_PIXELS", "ImageError", "OpenedImage", "decode_image", "open_image", "to_rgb"]

MAX_PIXELS = 64 * 1024 * 1024
"""Width x height above which an image is not decoded by default: 200 MB at 3 bytes per pixel."""

# Called directly rather than through `Image.open`: that hides the error of a plugin, and refuses large images
# before their size is known.
_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class OpenedImage:
    """An encoded image whose header has been read."""

    data: bytes
    """As given, without what only deviates from the format; of a PNG without metadata beside its profile."""
    format: str
    """jpeg, png, webp, gif, bmp or tiff."""
    width: int
    """Pixels, as stored (before the orientation is applied)."""
    height: int
    is_plain: bool
    """True for a still image of 8-bit RGB without transparency, in a format that is published (JPEG, PNG, WebP)."""
    jpeg_header: jpeg.JpegHeader | None = None
    _opened: ImageFile.ImageFile | None = None

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8. May decode a PNG, whose EXIF may follow its pixels.

        Raises:
            ImageError: image_truncated or image_corrupt.
        """
        if self._opened is None:
            assert self.jpeg_header is not None
            turns = map(exif_orientation, self.jpeg_header.exif)
            return next((turn for turn in turns if turn != 1), 1)
        if self.format == "tiff":  # Pillow applies the orientation itself
            return 1
        _load(self._opened, self.format)
        return _orientation(self._opened)

    def decode_stored(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """The image as 8-bit RGB in stored orientation.

        Args:
            at_least: width and height; a JPEG may be decoded at a smaller scale that is not below them.

        Raises:
            ImageError: image_truncated, image_corrupt or image_format_unsupported.
        """
        data = self.data
        if (
            self.jpeg_header is not None
            and self.jpeg_header.colorspace == "RGB"
            and at_least is None
        ):
            pixels, _ = jpeg.decode(data, self.jpeg_header, self.width, self.height)
            return Image.fromarray(pixels)
        if (
            self.jpeg_header is not None and self.jpeg_header.colorspace
        ):  # Pillow decodes damaged data without a word
            _, data = jpeg.decode(data, self.jpeg_header, -(-self.width // 8), -(-self.height // 8))
        opened = self._opened or _open(data, self.format)
        if at_least is not None and self.format == "jpeg":
            opened.draft(None, at_least)
        _load(opened, self.format)
        return _rgb(opened)

    def decode(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """The image as 8-bit RGB, upright; takes `at_least` and raises as `decode_stored`."""
        pixels = self.decode_stored(at_least)
        return _turned(pixels, self.orientation)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """An encoded image with its format and size; its pixels are not decoded yet.

    Raises:
        ImageError: with any of its reasons.
    """
    kind = format_of(data)
    if kind == "jpeg":
        header, data = jpeg.read_header(data)
        size = header.width, header.height
        image = OpenedImage(data, kind, *size, header.is_plain, header)
        _check_size(image, max_pixels)
        return image
    file = read_png(data) if kind == "png" else None
    data = file.data if file else whole_webp(data) if kind == "webp" else data
    opened = _open(data, kind)
    is_plain = (file is None or file.is_still) and _is_plain(opened, data)
    image = OpenedImage(data, kind, *opened.size, is_plain, _opened=opened)
    _check_size(image, max_pixels)
    if file and not file.check():
        return replace(image, is_plain=False)
    return image


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The pixels of an encoded image as 8-bit RGB, upright; raises as `open_image` and `OpenedImage.decode`."""
    return open_image(data, max_pixels).decode()


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image as 8-bit RGB, upright, by the same rules; raises `ImageError` for other modes of pixels."""
    image.load()
    return _turned(_rgb(image), _orientation(image))


def exif_orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, of EXIF data that begin with a TIFF header; 1 where there is none."""
    try:
        order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
        if not order:
            return 1
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(min(num_entries, 512)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == _TAG_ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


_TAG_ORIENTATION, _SHORT = 0x0112, 3
_TAG_BITS, _TAG_PHOTOMETRIC, _TAG_SAMPLE_FORMAT = 258, 262, 339  # of TIFF


def _open(data: bytes, kind: str) -> ImageFile.ImageFile:
    """The image by Pillow's plugin, its pixels not decoded."""
    try:
        return _PLUGINS[kind](io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(error) from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged headers
        if str(error) in _UNKNOWN_SAMPLES and _has_directory(data):
            raise _unsupported_pixels("samples of an unusual kind") from None
        is_short = _is_short(error) or isinstance(error.__cause__, IndexError | struct.error)
        if is_short or len(data) < _SMALLEST[kind]:
            raise damaged(kind, "image_truncated", "in the header") from None
        raise damaged(kind, "image_corrupt") from None


_UNKNOWN_SAMPLES = ("unknown pixel mode", "unknown data organization")  # messages of Pillow


def _has_directory(data: bytes) -> bool:
    """Whether the first directory of a TIFF is whole, with the values that stand outside it."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(num_entries):
            _, kind, count, at = struct.unpack_from(f"{order}HHII", data, start + 2 + 12 * entry)
            num_bytes = count * (_TIFF_BYTES[kind] if kind < len(_TIFF_BYTES) else 1)
            if num_bytes > 4 and at + num_bytes > len(data):
                return False
    except struct.error:
        return False
    return True


_TIFF_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
"""Of one value, by type (TIFF 6.0, section 2)."""

_SMALLEST = {"jpeg": 4, "png": 45, "webp": 26, "gif": 14, "bmp": 26, "tiff": 8}
"""Bytes of headers (of PNG, with an empty image) below which a file that cannot be opened is truncated."""


def _load(image: Image.Image, kind: str) -> None:
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(error) from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged data
        reason = "image_truncated" if _is_short(error) else "image_corrupt"
        raise damaged(kind, reason) from None


def _is_short(error: BaseException) -> bool:
    return isinstance(error, EOFError) or "truncated" in str(error).lower()


def _is_plain(image: ImageFile.ImageFile, data: bytes) -> bool:
    """By the header alone: a still, opaque PNG or WebP of 8-bit RGB."""
    if image.mode != "RGB" or "transparency" in image.info:
        return False
    if image.format == "WEBP":
        return not (data[12:16] == b"VP8X" and data[20] & 0x02)  # the flag of an animation
    return image.format == "PNG" and image.tile[0][3] == "RGB"  # RGB;16B: 16 bits


def _check_size(image: OpenedImage, max_pixels: int) -> None:
    width, height = image.width, image.height
    if min(width, height) < 1:
        raise damaged(image.format, "image_corrupt", f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            "image_too_many_pixels",
            f"{width}x{height}, limit {max_pixels} pixels",
            f"the image has {width} x {height} = {width * height:,} pixels, the limit is {max_pixels:,}; "
            "give a smaller one",
        )


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif")
    return exif_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image as seen, by EXIF orientation (EXIF 2.32, section 4.6.4.A)."""
    return image if orientation == 1 else image.transpose(_TRANSPOSITIONS[orientation])


def _rgb(image: Image.Image) -> Image.Image:
    """A new image of 8-bit RGB, as stored, without metadata (a kept orientation would be applied twice)."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_TAG_SAMPLE_FORMAT, (1,))[0] != 1:
        raise _unsupported_pixels(f"signed or float samples (mode {image.mode})")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode.startswith("I;16"):
        bits = tags.get(_TAG_BITS, (16,))[0]
        is_inverted = bool(tags) and tags.get(_TAG_PHOTOMETRIC, 0) == 0
        rgb = image.convert("I").point(_eight_bits(bits, is_inverted), "L").convert("RGB")
    elif image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(with_alpha, mask=with_alpha.getchannel("A"))
    elif image.mode in _PLAIN_MODES:
        rgb = image.convert("RGB")
    else:
        raise _unsupported_pixels(f"pixels of mode {image.mode}")
    rgb.info.clear()
    return rgb


def _unsupported_pixels(what: str) -> ImageError:
    message = f"an image with {what} is not supported; convert it to 8-bit RGB"
    return ImageError("image_format_unsupported", what, message)


@functools.cache
def _eight_bits(bits: int, is_inverted: bool) -> list[int]:
    """The 8-bit value of each 16-bit one, rounded: the largest of `bits` is 255, or 0 where white is zero."""
    largest = (1 << bits) - 1
    values = [(min(value, largest) * 255 + largest // 2) // largest for value in range(1 << 16)]
    return [255 - value for value in values] if is_inverted else values
