"""Keys of the content of prompts: equal keys mean equal pages, or equal embeddings of an image.

The key of a page covers everything before it: the weights, the adapter, all token ids and all images.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from torch import Tensor

from emu.generate.page_pool import PAGE_POSITIONS
from emu.models.emu import Emu

KEY_BYTES = 32


@dataclass(frozen=True)
class ContentKeys:
    """The keys of one prompt."""

    weights: bytes
    """Of the model's weights."""
    images: Sequence[bytes]
    pages: Sequence[bytes]
    """Of the pages that it fills and another may share."""


def weights_key(model: Emu, adapter: bytes = b"") -> bytes:
    """The key of a model in this process, and of an adapter on it: its weights, by their memory and how often torch
    has changed them.

    It is cheap and differs after every optimizer step, loaded weight or merged adapter. A change that
    bypasses torch's count (`weight.data.copy_`) is not seen.
    """
    digest = blake2b(adapter, digest_size=KEY_BYTES)
    for name, weight in model.named_parameters():
        changes = 0 if weight.is_inference() else weight._version
        digest.update(f"{name} {weight.data_ptr()} {changes}\n".encode())
    return digest.digest()


def image_key(weights: bytes, pixels_CHW: Tensor) -> bytes:
    """The key of an image as the visual encoder sees it: after preprocessing."""
    digest = blake2b(weights, digest_size=KEY_BYTES)
    digest.update(f"{tuple(pixels_CHW.shape)} {pixels_CHW.dtype}".encode())
    digest.update(pixels_CHW.detach().cpu().numpy().tobytes())
    return digest.digest()


def page_keys(
    weights: bytes, ids: Sequence[int], images: Sequence[bytes], image_token: int, num_queries: int
) -> list[bytes]:
    """The keys of the pages that a prompt fills and another may share: all full ones before its last position.

    `images` are the keys of its images in order; each has `num_queries` positions, which are `image_token` in `ids`.
    """
    keys: list[bytes] = []
    before, num_places = weights, 0
    for start in range(0, (len(ids) - 1) // PAGE_POSITIONS * PAGE_POSITIONS, PAGE_POSITIONS):
        page = ids[start : start + PAGE_POSITIONS]
        first, num_places = num_places, num_places + sum(token == image_token for token in page)
        digest = blake2b(before, digest_size=KEY_BYTES)
        digest.update(array("q", page).tobytes())
        if num_places > first:
            for image in images[first // num_queries : -(-num_places // num_queries)]:
                digest.update(image)
        before = digest.digest()
        keys.append(before)
    return keys
