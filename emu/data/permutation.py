"""A shuffled order by arithmetic: no list, any place of it at once.

A Feistel network permutes the numbers below a power of four; walking its cycle until a number below
`size` comes out restricts it to 0..size-1 (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). Not a cipher here: only a good, repeatable shuffle.
"""

from __future__ import annotations

import hashlib

ROUNDS = 4
MASK = (1 << 64) - 1


class Permutation:
    """A bijection of 0..size-1 drawn from a seed: `permutation[i]` in constant time and memory."""

    def __init__(self, size: int, *seed: int | str) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} numbers; give at least 1")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        digest = derived_bytes("permutation", *seed)
        self._round_keys = [int.from_bytes(digest[i * 8 : i * 8 + 8]) for i in range(ROUNDS)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of a permutation of {self.size}")
        value = self._network(place)
        while value >= self.size:  # less than 4 times on average: the domain is below 4 * size
            value = self._network(value)
        return value

    def _network(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._half_mask)
        return left << self._half_bits | right


def derived_bytes(*parts: int | str) -> bytes:
    """64 bytes drawn from the parts: equal parts, equal bytes, on every machine and version."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest()


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits drawn from the parts."""
    return int.from_bytes(derived_bytes(*parts)[:8]) >> 1


def _mixed(value: int) -> int:
    """The finaliser of splitmix64: every input bit moves about half of the output bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
