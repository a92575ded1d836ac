"""Encoded images to the numbers that the visual encoder takes (paper section 3; released code).

The image is squashed to the tower's square without crop or kept aspect, with Pillow's bicubic filter,
scaled to 0..1 and normalised by the mean and deviation of OpenAI's CLIP.

Shapes: N images, C channels, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schemas.images import decode_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(image: Image.Image, side: int) -> Tensor:
    """The image as a float32 `CHW` tensor of `side` x `side`, normalised."""
    squashed = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(squashed, dtype=np.float32) / 255.0
    mean, std = np.asarray(CLIP_MEAN, np.float32), np.asarray(CLIP_STD, np.float32)
    return torch.from_numpy(((pixels_HWC - mean) / std).transpose(2, 0, 1).copy())


def pixels_of(images: Sequence[bytes], side: int) -> Tensor:
    """Encoded images as one `NCHW` tensor; raises `ImageError` for bytes that do not decode."""
    if not images:
        return torch.empty(0, 3, side, side)
    return torch.stack([normalise(decode_image(data), side) for data in images])


def to_png(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
