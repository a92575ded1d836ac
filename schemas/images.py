"""Which pixels an encoded image means: one opener for the build, training and serving.

    image = open_image(data, max_pixels=50_000_000)   # format and size; nothing is decoded yet
    pixels = image.decode()                           # Pillow, 8-bit RGB, upright

- The format follows from the first bytes, never from a claimed type or a file name: JPEG, PNG, WebP, GIF, BMP, TIFF.
- Headers are read by Pillow's lazy plugins, those of JPEGs by a short walk through their segments (half the time).
  Width and height are limited before decoding, and so is the number of scans of a JPEG.
- Pixels are 8-bit RGB: 16-bit grey is scaled (65,535 becomes 255), transparency is composited on white, of an
  animation the first frame is taken. ICC profiles are not applied: pixels are taken as sRGB, as CLIP was trained.
- The EXIF orientation is applied, as browsers do; other hints (XMP) are ignored. EXIF that cannot be read is ignored.
"""

import functools
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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

MAX_PIXELS = 64 * 1024 * 1024
"""Width x height above which an image is not decoded by default: 200 MB at 3 bytes per pixel."""

MAX_SCANS = 64
"""Scans of a JPEG. Progressive ones have about ten; each may cost the time of a whole decode."""

FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"

_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
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
_UNSUPPORTED = {
    b"\0\0\1\0": "ICO",
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP": "JPEG 2000",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<script")

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


class ImageError(ValueError):
    """Bytes that are not an image that can be used; the text is for a person, with value, limit and hint.

    Args:
        reason: a reason word: not_an_image, html_not_image, image_format_unsupported, image_too_many_pixels,
            image_too_many_scans, image_truncated or image_corrupt.
        detail: more on the reason for a ledger; equal for equal bytes.
        message: the text; None makes one from reason and detail.
    """

    def __init__(self, reason: str, detail: str | None = None, message: str | None = None) -> None:
        super().__init__(message or (reason if detail is None else f"{reason}: {detail}"))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str | None, str]]:
        return type(self), (self.reason, self.detail, str(self))

    def at(self, where: str) -> "ImageError":
        """The same error with the place of the image in front of its text."""
        return type(self)(self.reason, self.detail, f"{where}: {self}")


@dataclass(frozen=True)
class OpenedImage:
    """An encoded image whose header has been read."""

    data: bytes
    format: str
    """jpeg, png, webp, gif, bmp or tiff."""
    width: int
    """Pixels, as stored (before the orientation is applied)."""
    height: int
    is_plain: bool
    """True for a still image of 8-bit RGB without transparency, in a format that is published (JPEG, PNG, WebP)."""
    _exif: bytes = b""
    _opened: ImageFile.ImageFile | None = None

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8. May decode a PNG, whose EXIF may follow its pixels.

        Raises:
            ImageError: image_truncated or image_corrupt.
        """
        if self._opened is None:
            return exif_orientation(self._exif)
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
        opened = self._opened or _open(self.data, self.format)
        if at_least is not None and self.format == "jpeg":
            opened.draft(None, at_least)
        _load(opened, self.format)
        return _rgb(opened)

    def decode(self) -> Image.Image:
        """The image as 8-bit RGB, upright; raises as `decode_stored`."""
        pixels = self.decode_stored()
        return _turned(pixels, self.orientation)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """An encoded image with its format and size; its pixels are not decoded yet.

    Raises:
        ImageError: with any of its reasons.
    """
    kind = _sniff(data)
    if kind == "jpeg":
        image = _read_jpeg(data)
    else:
        _check_length(data, kind)
        opened = _open(data, kind)
        image = OpenedImage(data, kind, *opened.size, _is_plain(opened, data), _opened=opened)
    _check_size(image, max_pixels)
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


def _sniff(data: bytes) -> str:
    """The format by the first bytes."""
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature) and (kind != "webp" or data[8:12] == b"WEBP"):
            return kind
    raise _unknown(data)


_TAG_ORIENTATION, _SHORT = 0x0112, 3
_MAX_SEGMENTS = 4096  # of one JPEG; files of cameras have dozens
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})


def _read_jpeg(data: bytes) -> OpenedImage:
    exif, frame, is_progressive, num_in_scan = b"", b"", False, 0
    for marker, segment in _jpeg_segments(data):
        if marker == 0xE1 and segment.startswith(b"Exif\0\0") and exif_orientation(exif) == 1:
            exif = segment[6:]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, is_progressive = segment, marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == _START_OF_SCAN:
            num_in_scan = segment[0] if segment else 0
    if len(frame) < 6:
        raise _damaged("jpeg", "image_truncated", "in the header")
    precision, height, width, num_components = struct.unpack_from(">BHHB", frame)
    has_scans = is_progressive or num_in_scan < num_components
    if has_scans and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(
            "image_too_many_scans",
            f"limit {MAX_SCANS}",
            f"the JPEG image has more than {MAX_SCANS} scans, the limit; save it again",
        )
    return OpenedImage(data, "jpeg", width, height, precision == 8 and num_components == 3, exif)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with their segments, up to the first scan and with its header."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)  # like libjpeg, skip what is between segments
        while 0 <= position < len(data) and data[position] == 0xFF:
            position += 1
        if position < 0 or position >= len(data):
            break
        marker = data[position]
        position += 1
        if marker == 0 or marker in _BARE_MARKERS:
            continue
        if marker == _END_OF_IMAGE:
            return
        if position + 2 > len(data):
            break
        length = max(data[position] << 8 | data[position + 1], 2)
        if position + length > len(data):
            break
        yield marker, data[position + 2 : position + length]
        if marker == _START_OF_SCAN:
            return
        position += length
    raise _damaged("jpeg", "image_truncated", "in the header")


def _check_length(data: bytes, kind: str) -> None:
    """Where the header or an end mark tells that bytes are missing; before anything is decoded."""
    if kind == "webp" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise _damaged("webp", "image_truncated", "shorter than its header says")
    if kind == "png" and data.rfind(b"IEND") < 0:
        raise _damaged("png", "image_truncated", "in the header")


def _open(data: bytes, kind: str) -> ImageFile.ImageFile:
    """The image by Pillow's plugin, its pixels not decoded."""
    try:
        return _PLUGINS[kind](io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large_for_pillow(error) from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged headers
        is_short = _is_short(error) or isinstance(error.__cause__, IndexError | struct.error)
        if is_short or len(data) < _SMALLEST[kind]:
            raise _damaged(kind, "image_truncated", "in the header") from None
        raise _damaged(kind, "image_corrupt") from None


_SMALLEST = {"jpeg": 4, "png": 45, "webp": 26, "gif": 14, "bmp": 26, "tiff": 8}
"""Bytes of headers (of PNG, with an empty image) below which a file that cannot be opened is truncated."""


def _load(image: Image.Image, kind: str) -> None:
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large_for_pillow(error) from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged data
        reason = "image_truncated" if _is_short(error) else "image_corrupt"
        raise _damaged(kind, reason) from None


def _is_short(error: BaseException) -> bool:
    return isinstance(error, EOFError) or "truncated" in str(error).lower()


def _is_plain(image: ImageFile.ImageFile, data: bytes) -> bool:
    """By the header alone: a still, opaque PNG or WebP of 8-bit RGB."""
    if image.mode != "RGB" or "transparency" in image.info:
        return False
    if image.format == "WEBP":
        return not (data[12:16] == b"VP8X" and data[20] & 0x02)  # the flag of an animation
    is_still = not getattr(image, "is_animated", False)
    return image.format == "PNG" and is_still and image.tile[0][3] == "RGB"  # RGB;16B: 16 bits


def _check_size(image: OpenedImage, max_pixels: int) -> None:
    width, height = image.width, image.height
    if min(width, height) < 1:
        raise _damaged(image.format, "image_corrupt", f"{width}x{height} pixels")
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
    if image.mode.startswith("I;16"):
        rgb = image.convert("I").point(_sixteen_to_eight(), "L").convert("RGB")
    elif image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(with_alpha, mask=with_alpha.getchannel("A"))
    elif image.mode in _PLAIN_MODES:
        rgb = image.convert("RGB")
    else:
        raise ImageError(
            "image_format_unsupported",
            f"pixels of mode {image.mode}",
            f"an image with pixels of mode {image.mode} is not supported; convert it to 8-bit RGB",
        )
    rgb.info.clear()
    return rgb


@functools.cache
def _sixteen_to_eight() -> list[int]:
    """The 8-bit value of each 16-bit one, rounded: 65,535 = 255 x 257."""
    return [(value + 128) // 257 for value in range(1 << 16)]


def _damaged(kind: str, reason: str, detail: str | None = None) -> ImageError:
    """Our own words: messages of decoders hold object addresses and positions."""
    name = {"webp": "WebP"}.get(kind, kind.upper())
    fault = ": it ends too early" if reason == "image_truncated" else ""
    more = "" if detail is None else f" ({detail})"
    return ImageError(reason, detail, f"the {name} image is damaged{fault}{more}; save it again")


def _too_large_for_pillow(error: Any) -> ImageError:
    detail = "above the decoder's own limit"
    return ImageError("image_too_many_pixels", detail, f"the image is too large: {error}")


def _unknown(data: bytes) -> ImageError:
    """What it is, if it is not an image that is decoded here."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return _unsupported("SVG")
    if start.startswith(_MARKUP):
        message = f"the bytes are a page of HTML or XML, not an image; give {FORMATS}"
        return ImageError("html_not_image", None, message)
    if data[4:8] == b"ftyp":
        return _unsupported(_BRANDS.get(data[8:12], "ISO media"))
    for signature, name in _UNSUPPORTED.items():
        if data.startswith(signature):
            return _unsupported(name)
    message = f"{len(data):,} bytes that start with {data[:8]!r} are not an image; give {FORMATS}"
    if not data:
        message = f"the image is empty (0 bytes); give {FORMATS}"
    return ImageError("not_an_image", None, message)


def _unsupported(name: str) -> ImageError:
    message = f"images in the format {name} are not supported; give {FORMATS}"
    return ImageError("image_format_unsupported", name, message)
