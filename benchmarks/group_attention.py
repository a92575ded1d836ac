#!/usr/bin/env python3
"""Attention of single positions on a CPU: a call for each sequence over its pages in place, or one call for a group.

    python -m benchmarks.group_attention [--rounds 15]

A group has sequences of equal length. Its keys and values are gathered into one tensor, by pages; where the sequences
lie at equal distances in the memory, a view of it serves as well (`strided`). The two or three take turns within each
round; the figures are medians of CPU microseconds per layer, and of the ratio to the call for each within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

SHAPES = ((2, 8), (8, 64), (16, 64), (32, 128))  # heads and their width
LENGTHS = (32, 128, 512)
GROUPS = (2, 8)


def time_us(call: Callable[[], Tensor], repeats: int) -> float:
    """Microseconds of CPU of a call: other work on the machine counts little."""
    begun = time.thread_time()
    for _ in range(repeats):
        call()
    return 1e6 * (time.thread_time() - begun) / repeats


@torch.inference_mode()
def compare(heads: int, width: int, length: int, group: int, rounds: int) -> dict[str, Any]:
    """The times of one shape."""
    memory = torch.randn(2, heads, group * length, width)
    queries_BHK = torch.randn(group, heads, width)
    slots = torch.arange(group * length)

    def each() -> Tensor:
        mixed = torch.empty_like(queries_BHK)
        for row in range(group):
            keys, values = memory[:, :, row * length : (row + 1) * length]
            seen = scaled_dot_product_attention(
                queries_BHK[row : row + 1].transpose(0, 1)[None], keys[None], values[None]
            )
            mixed[row : row + 1] = seen[0].transpose(0, 1)
        return mixed

    def batched(keys_HBSK: Tensor, values_HBSK: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            queries_BHK[:, :, None], keys_HBSK.transpose(0, 1), values_HBSK.transpose(0, 1)
        )[:, :, 0]

    def gathered() -> Tensor:
        keys, values = memory.index_select(2, slots).unflatten(2, (group, length))
        return batched(keys, values)

    def strided() -> Tensor:
        keys, values = memory.unflatten(2, (group, length))
        return batched(keys, values)

    ways = {"each": each, "gathered": gathered, "strided": strided}
    for way in ways.values():
        assert torch.allclose(way(), each(), atol=1e-5)
    repeats = max(1, int(2e6 / (heads * width * length * group)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            found[name].append(time_us(ways[name], repeats))
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(times, found["each"], strict=True)), 2)
        for name, times in found.items()
        if name != "each"
    }
    medians = {name: round(statistics.median(times), 1) for name, times in found.items()}
    shape = {"heads": heads, "width": width, "length": length, "group": group}
    return shape | {"us": medians, "ratio": ratios}


def lines(rounds: int) -> Iterator[dict[str, Any]]:
    """A line for each shape."""
    for heads, width in SHAPES:
        for length in LENGTHS:
            for group in GROUPS:
                yield compare(heads, width, length, group, rounds)


def main() -> None:
    """Prints JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    torch.set_num_threads(1)
    for line in lines(parser.parse_args().rounds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
