"""What bytes are by their beginning, and the error for those that are no image that can be used."""

from typing import Any

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
_UNSUPPORTED = {
    b"\0\0\1\0": "ICO",
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP": "JPEG 2000",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<script")


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


def format_of(data: bytes) -> str:
    """The format by the first bytes: jpeg, png, webp, gif, bmp or tiff; raises `ImageError` for any other."""
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature) and (kind != "webp" or data[8:12] == b"WEBP"):
            return kind
    raise _unknown(data)


def damaged(kind: str, reason: str, detail: str | None = None) -> ImageError:
    """Our own words: messages of decoders hold object addresses and positions."""
    name = {"webp": "WebP"}.get(kind, kind.upper())
    fault = ": it ends too early" if reason == "image_truncated" else ""
    more = "" if detail is None else f" ({detail})"
    return ImageError(reason, detail, f"the {name} image is damaged{fault}{more}; save it again")


def too_large(error: Any) -> ImageError:
    """The error for an image that the decoder itself refuses as too large."""
    detail = "above the decoder's own limit"
    return ImageError("image_too_many_pixels", detail, f"the image is too large: {error}")


def _unknown(data: bytes) -> ImageError:
    """What it is, if it is not an image that is decoded here."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return unsupported("SVG")
    if start.startswith(_MARKUP):
        message = f"the bytes are a page of HTML or XML, not an image; give {FORMATS}"
        return ImageError("html_not_image", None, message)
    if data[4:8] == b"ftyp":
        return unsupported(_BRANDS.get(data[8:12], "ISO media"))
    for signature, name in _UNSUPPORTED.items():
        if data.startswith(signature):
            return unsupported(name)
    message = f"{len(data):,} bytes that start with {data[:8]!r} are not an image; give {FORMATS}"
    if not data:
        message = f"the image is empty (0 bytes); give {FORMATS}"
    return ImageError("not_an_image", None, message)


def unsupported(name: str) -> ImageError:
    """The error for a kind of image that is known and not decoded."""
    message = f"images in the format {name} are not supported; give {FORMATS}"
    return ImageError("image_format_unsupported", name, message)
