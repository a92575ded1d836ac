"""Attention of many sequences over their pages in one call: torch's `varlen_attn`, on CUDA in half precision.

There are three ways to read pages of 16 positions. `pages`: with a block table, which cuDNN takes from 9.24 on (Flash
attention takes pages of 256). `packed`: keys and values of all sequences are gathered side by side first, which Flash
attention takes on any card. `slots`: one call of plain attention for each sequence (`emu.generate.step_attention`), as
on a CPU. What a card and an installation of torch allow is tried once, in this order, by attention over a few pages
that is compared with the plain one.

Shapes: N sequences, T new positions of all of them side by side, S positions of a sequence, P pages of the longest one,
G pages of the pool, R positions of a page, M positions of the pool, A positions of all sequences, H heads, K width of a
head.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emu.generate.page_pool import PAGE_POSITIONS, pages_for

log = logging.getLogger(__name__)

TOLERANCE = 3e-2  # of the trial: values of unit variance in bfloat16
LONGEST_MULTIPLE = 256
"""Lengths are told to cuDNN as multiples of it: it plans anew for each length, which took longer than the step (H200,
64 requests of a model of 1 billion weights: 1,550 tokens per second with exact lengths, 3,700 with these)."""
Reading = Literal["pages", "packed", "slots"]
"""How a step reads the keys and values of its sequences."""


@dataclass(frozen=True)
class PagedBatch:
    """Which pages the new positions of each sequence see."""

    bounds_N: Tensor
    """int32, where the new positions of each begin, and the end: one more than there are sequences."""
    lengths_N: Tensor
    """int32, positions of each sequence, the new ones included."""
    pages_NP: Tensor
    """int32, its pages in order; 0 beyond the last."""
    longest_new: int
    """At least the most new positions of a sequence: a power of two."""
    longest: int
    """At least the most positions of a sequence: a multiple of `LONGEST_MULTIPLE`."""

    @classmethod
    def of(
        cls, pages: Sequence[Sequence[int]], before: Sequence[int], new: Sequence[int]
    ) -> PagedBatch:
        """From the pages of each sequence, its positions before the step, and how many are new."""
        lengths = [length + number for length, number in zip(before, new, strict=True)]
        longest = -(-max(lengths) // LONGEST_MULTIPLE) * LONGEST_MULTIPLE
        width = longest // PAGE_POSITIONS
        rows = []
        for own, length in zip(pages, lengths, strict=True):
            needed = pages_for(length)
            assert len(own) >= needed, (len(own), length)
            rows.append([*own[:needed], *[0] * (width - needed)])
        return cls(
            torch.tensor([0, *accumulate(new)], dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            torch.tensor(rows, dtype=torch.int32),
            1 << (max(new) - 1).bit_length(),
            longest,
        )

    def to(self, device: torch.device) -> PagedBatch:
        """The same on a device."""
        return PagedBatch(
            self.bounds_N.to(device),
            self.lengths_N.to(device),
            self.pages_NP.to(device),
            self.longest_new,
            self.longest,
        )


@dataclass(frozen=True)
class PackedBatch:
    """Where the positions of each sequence lie, for a call over keys and values side by side."""

    bounds_N: Tensor
    """int32, where the new positions of each begin, and the end: one more than there are sequences."""
    key_bounds_N: Tensor
    """int32, the same of all positions, the new ones included."""
    slots_A: Tensor
    """Where all positions lie in the pool, sequence after sequence."""
    longest_new: int
    longest: int

    @classmethod
    def of(
        cls,
        slots: Sequence[Tensor],
        before: Sequence[int],
        new: Sequence[int],
        device: torch.device,
    ) -> PackedBatch:
        """From the slots `S` of each sequence, its positions before the step, and how many are new."""
        lengths = [length + number for length, number in zip(before, new, strict=True)]
        bounds_2N = torch.tensor(
            [[0, *accumulate(new)], [0, *accumulate(lengths)]], dtype=torch.int32
        ).to(device)
        own = [slots_S[:length] for slots_S, length in zip(slots, lengths, strict=True)]
        return cls(bounds_2N[0], bounds_2N[1], torch.cat(own), max(new), max(lengths))


def attend_pages(
    batch: PagedBatch, queries_THK: Tensor, keys_GRHK: Tensor, values_GRHK: Tensor
) -> Tensor:
    """The mixed values `THK`: each new position sees its own sequence up to itself."""
    from torch.nn.attention.varlen import varlen_attn

    mixed = varlen_attn(
        queries_THK.contiguous(),
        keys_GRHK,
        values_GRHK,
        batch.bounds_N,
        None,
        batch.longest_new,
        batch.longest,
        window_size=(-1, 0),  # causal, aligned to the end of each sequence
        seqused_k=batch.lengths_N,
        block_table=batch.pages_NP,
    )
    assert isinstance(mixed, Tensor)
    return mixed


def attend_packed(
    batch: PackedBatch, queries_THK: Tensor, keys_MHK: Tensor, values_MHK: Tensor
) -> Tensor:
    """As `attend_pages`, over keys and values that are gathered first."""
    from torch.nn.attention.varlen import varlen_attn

    mixed = varlen_attn(
        queries_THK.contiguous(),
        keys_MHK.index_select(0, batch.slots_A),
        values_MHK.index_select(0, batch.slots_A),
        batch.bounds_N,
        batch.key_bounds_N,
        batch.longest_new,
        batch.longest,
        window_size=(-1, 0),
    )
    assert isinstance(mixed, Tensor)
    return mixed


def attend_pages_plainly(
    batch: PagedBatch, queries_THK: Tensor, keys_GRHK: Tensor, values_GRHK: Tensor
) -> Tensor:
    """What `attend_pages` gives, from the same arguments by plain attention for each sequence, on any device."""
    mixed = []
    bounds, lengths = batch.bounds_N.tolist(), batch.lengths_N.tolist()
    for row, length in enumerate(lengths):
        queries_HTK = queries_THK[bounds[row] : bounds[row + 1]].transpose(0, 1)
        pages = batch.pages_NP[row, : pages_for(length)].long()
        keys_HSK, values_HSK = (
            each.index_select(0, pages).flatten(0, 1)[:length].transpose(0, 1)
            for each in (keys_GRHK, values_GRHK)
        )
        number = queries_HTK.shape[1]
        sees_TS = queries_THK.new_ones(number, length, dtype=torch.bool).tril(length - number)
        seen = scaled_dot_product_attention(
            queries_HTK[None], keys_HSK[None], values_HSK[None], attn_mask=sees_TS
        )
        mixed.append(seen[0].transpose(0, 1))
    return torch.cat(mixed)


def reading_of(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> Reading:
    """How sequences of these heads are read on this device; tried once."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "slots"
    return _reading_by_trial(device, dtype, heads, width)


@functools.cache
def _reading_by_trial(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> Reading:
    """Two sequences, a chunk of a prompt and a single position, over pages that lie in no order."""
    pages, before, new = [[5, 2, 7], [1, 4]], [20, 24], [17, 1]
    batch = PagedBatch.of(pages, before, new).to(device)
    generator = torch.Generator().manual_seed(1)
    queries, keys, values = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((18, heads, width), *[(8, PAGE_POSITIONS, heads, width)] * 2)
    )
    within_P = torch.arange(PAGE_POSITIONS)
    slots = [
        (torch.tensor(own)[:, None] * PAGE_POSITIONS + within_P).flatten().to(device)
        for own in pages
    ]
    packed = PackedBatch.of(slots, before, new, device)
    expected = attend_pages_plainly(batch, queries, keys, values)
    ways: dict[Reading, Callable[[], Tensor]] = {
        "pages": lambda: attend_pages(batch, queries, keys, values),
        "packed": lambda: attend_packed(packed, queries, keys.flatten(0, 1), values.flatten(0, 1)),
    }
    for way, call in ways.items():
        try:
            difference = (call() - expected).float().abs().max().item()
        except (RuntimeError, ValueError, ImportError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
        else:
            if difference < TOLERANCE:
                log.info("attention=%s heads=%d width=%d", way, heads, width)
                return way
            reason = f"it differs by {difference:g} from plain attention"
        log.info("attention!=%s heads=%d width=%d reason=%s", way, heads, width, reason)
    log.warning(
        "attention=slots heads=%d width=%d: one call for each request, slow for many", heads, width
    )
    return "slots"
