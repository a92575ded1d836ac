"""The upper limits of one request, and of all requests together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from schemas.validation import Checked


@dataclass(frozen=True)
class Limits(Checked):
    """Upper limits of one request; a request beyond them is refused with the value and the limit."""

    max_body_bytes: Annotated[int, Field(ge=1)] = 32 * 1024 * 1024
    """Bytes of a whole request. Base64 makes images a third larger."""
    max_body_values: Annotated[int, Field(ge=1)] = 100_000
    """Commas and opening brackets of a JSON body, which bound its values; a list of token ids has one per id."""
    max_images: Annotated[int, Field(ge=1)] = 16
    """Images in all messages together. A video counts as its frames."""
    max_image_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    """Encoded bytes of one image."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Width times height of one image, read from its header before decoding."""
    max_total_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Pixels of all images of a request together."""
    max_video_bytes: Annotated[int, Field(ge=1)] = 24 * 1024 * 1024
    """Encoded bytes of one video."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Tokens per reply."""
    max_choices: Annotated[int, Field(ge=1)] = 16
    """Replies or images per request (`n` times the number of prompts)."""
    max_candidates: Annotated[int, Field(ge=1)] = 1000
    """Candidates of a ranking, or inputs of an embeddings request."""
    max_side: Annotated[int, Field(ge=1)] = 1024
    """Height and width of a generated image in pixels."""
    max_steps: Annotated[int, Field(ge=1)] = 100
    """Denoising steps of a generated image."""
    max_beams: Annotated[int, Field(ge=1)] = 8
    """Beams of a beam search."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds from the request to the end of its response, including the time in the queue."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds within which the body of a request must arrive."""
    max_parallel: Annotated[int, Field(ge=1)] = 512
    """Requests that the server handles at the same time, including those that wait."""
    max_bytes_in_flight: Annotated[int, Field(ge=1)] = 1024 * 1024 * 1024
    """Bytes of the bodies of all requests that are handled at the same time."""
