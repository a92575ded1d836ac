"""Pairs of rows that may be near duplicates: those that agree in a band of their signature.

| signature    | bands                                                             | finds                           |
|--------------|-------------------------------------------------------------------|---------------------------------|
| 64-bit hash  | every choice of all but `radius` of m blocks of bits (Manku et    | every pair within the radius    |
|              | al., "Detecting near-duplicates for web crawling", 2007)          |                                 |
| MinHash, 128 | 16 bands of 8 values (Broder 1997; locality-sensitive hashing)    | 95% of pairs of similarity 0.8, |
|              |                                                                   | 99.99% of 0.9                   |

A band is a table (value of the band, row), brought into buckets by its value and sorted there.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np

NUM_BITS = 64
NUM_BANDS, BAND_VALUES = 16, 8
NUM_PERMUTATIONS = NUM_BANDS * BAND_VALUES
MAX_COMPARED = 16
"""In a band of MinHash a row is compared with the first so many rows that agree with it: boilerplate that millions
share costs no more than that per row."""


def block_masks(radius: int, num_rows: int) -> list[np.uint64]:
    """The masks of the bands of 64-bit hashes: two hashes within `radius` bits agree under one of them at least.

    With more blocks there are more bands, and fewer rows agree in one by chance; the number of blocks is the cheapest.
    """

    def cost(num_blocks: int) -> float:
        bits = NUM_BITS * (num_blocks - radius) / num_blocks
        return comb(num_blocks, radius) * num_rows * (3e-7 + 16e-9 * num_rows / 2**bits / 2)

    num_blocks = min(range(radius + 1, radius + 7), key=cost)
    edges = np.linspace(0, NUM_BITS, num_blocks + 1).round().astype(int)
    blocks = [((1 << int(b)) - 1) ^ ((1 << int(a)) - 1) for a, b in pairwise(edges)]
    chosen = combinations(blocks, num_blocks - radius)
    return [np.uint64(sum(some)) for some in chosen]


def hash_pairs(
    bands: np.ndarray, hashes: np.ndarray, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Index of one, index of another, distance in bits, of all hashes that agree in their band within the radius.

    Args:
        bands: N values, sorted.
        hashes: the N hashes.
        radius: in bits.
    """
    left = np.arange(len(bands))
    for offset in range(1, len(bands)):
        left = left[left < len(bands) - offset]
        left = left[bands[left] == bands[left + offset]]
        if not len(left):
            return
        distance = np.bitwise_count(hashes[left] ^ hashes[left + offset])
        is_near = distance <= radius
        if is_near.any():
            yield left[is_near], left[is_near] + offset, distance[is_near]


def first_pairs(
    bands: np.ndarray, limit: int = MAX_COMPARED
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index of each row, and that of one of the first `limit` rows before it with the same band (N, sorted)."""
    if not len(bands):
        return
    is_start = np.concatenate([[True], bands[1:] != bands[:-1]])
    starts = np.flatnonzero(is_start)[np.cumsum(is_start) - 1]
    number = np.arange(len(bands)) - starts
    later = np.arange(len(bands))
    for first in range(limit):
        later = later[number[later] > first]
        if not len(later):
            return
        yield later, starts[later] + first


def band_values(signatures: np.ndarray) -> np.ndarray:
    """The values of all bands, `[N, 16]` of uint64, of MinHash signatures `[N, 128]` of uint32."""
    return mixed(signatures.reshape(len(signatures), NUM_BANDS, BAND_VALUES))


def mixed(columns: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row of `[..., columns]`."""
    found = np.full(columns.shape[:-1], 0xCBF29CE484222325, np.uint64)
    for number in range(columns.shape[-1]):
        found = (found ^ columns[..., number].astype(np.uint64)) * np.uint64(0x100000001B3)
        found ^= found >> np.uint64(29)
    return found
