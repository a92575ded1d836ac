"""What one request may ask for at most."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """The bounds of a request; what is beyond is refused with the value and the limit."""

    max_body_bytes: int = 32 * 1024 * 1024
    """The whole request; pictures in it are a third larger than their bytes (base64)."""
    max_images: int = 16
    """Pictures in all messages together."""
    max_image_bytes: int = 10 * 1024 * 1024
    """Encoded bytes of one picture."""
    max_image_pixels: int = 50_000_000
    """Width times height of one picture, read from its header before anything is decoded."""
    max_tokens: int = 1024
    """Tokens of an answer."""
    max_side: int = 1024
    """Height and width of a drawn picture."""
    max_steps: int = 100
    """Denoising steps of a drawn picture."""
    max_beams: int = 8
    """Beams of a beam search."""
    timeout_s: float = 300.0
    """Seconds from the request to the end of its answer, waiting for a free replica included."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not value > 0:
                raise ValueError(f"Limits.{entry.name} is {value}, give a number above 0")
