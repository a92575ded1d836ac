"""Fuzzed prompts: pages are shared exactly where weights, adapter, ids and images before their end are equal."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from emu.generate.page_pool import PAGE_POSITIONS
from emu.generate.prefix import image_key, page_keys

IMAGE, QUERIES = 7, 8
WEIGHTS = [bytes([number]) * 32 for number in range(3)]  # of a model with other weights or adapters


def fuzzed_prompt(rng: random.Random) -> tuple[int, list[int], list[int]]:
    """The number of the weights, the ids, and the numbers of the images; many prompts share beginnings."""
    ids, images = [1], []
    for _ in range(rng.randrange(1, 7)):
        if rng.random() < 0.5:
            images.append(rng.randrange(3))
            ids += [5, *[IMAGE] * QUERIES, 6]
        else:
            ids += [rng.choice((20, 21)) for _ in range(rng.choice((1, 6, 16, 23)))]
    return rng.randrange(len(WEIGHTS)), ids, images


def content(
    weights: int, ids: Sequence[int], images: Sequence[int], end: int
) -> tuple[object, ...]:
    """What decides the keys and values of the positions before `end`."""
    num_places = sum(token == IMAGE for token in ids[:end])
    return weights, tuple(ids[:end]), tuple(images[: -(-num_places // QUERIES)])


def check_prompts(number: int, seed: int) -> int:
    """Makes prompts and compares their keys with their contents; gives the number of shared pages."""
    rng = random.Random(seed)
    known: dict[bytes, tuple[object, ...]] = {}
    keys_of: dict[tuple[object, ...], bytes] = {}
    pixels = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    keys_of_images = [image_key(WEIGHTS[0], each) for each in pixels]
    shared = 0
    for _ in range(number):
        weights, ids, images = fuzzed_prompt(rng)
        keys = page_keys(WEIGHTS[weights], ids, [keys_of_images[n] for n in images], IMAGE, QUERIES)
        assert len(keys) == (len(ids) - 1) // PAGE_POSITIONS, "a page is missing"
        for page, key in enumerate(keys):
            expected = content(weights, ids, images, (page + 1) * PAGE_POSITIONS)
            assert known.setdefault(key, expected) == expected, "two contents under one key"
            shared += keys_of.setdefault(expected, key) == key
            assert keys_of[expected] == key, "two keys for one content"
    return shared


def test_equal_keys_mean_equal_contents() -> None:
    assert check_prompts(3000, seed=0) > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_prompts() -> None:
    print(f"pages_shared={check_prompts(100_000, seed=1)}")


@pytest.mark.parametrize("change", ["value", "dtype", "shape"])
def test_the_key_of_an_image_covers_what_the_encoder_sees(change: str) -> None:
    pixels_CHW = torch.rand(3, 4, 4)
    other: Tensor = pixels_CHW.clone()
    if change == "value":
        other[0, 0, 0] += 1e-6
    other = other.half() if change == "dtype" else other
    other = other.reshape(3, 2, 8) if change == "shape" else other
    assert image_key(WEIGHTS[0], pixels_CHW) == image_key(WEIGHTS[0], pixels_CHW.clone())
    assert image_key(WEIGHTS[0], pixels_CHW) != image_key(WEIGHTS[0], other)
    assert image_key(WEIGHTS[0], pixels_CHW) != image_key(WEIGHTS[1], pixels_CHW)
