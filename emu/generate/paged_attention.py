"""Attention of many sequences over their pages in one call: torch's `varlen_attn` with a block table, on CUDA.

torch chooses cuDNN or Flash attention by card and version, and what they accept of pages of 16 positions differs. So
they are asked once, by attention over a few pages that is compared with the plain one; where they refuse or differ, the
pages of each sequence are read as slots (`emu.generate.step_attention`).

Shapes: N sequences, T new positions of all of them side by side, S positions of a sequence, P pages of the longest one,
G pages of the pool, R positions of a page, H heads, K width of a head.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emu.generate.page_pool import PAGE_POSITIONS, pages_for

log = logging.getLogger(__name__)

TOLERANCE = 3e-2  # of the trial: values of unit variance in bfloat16


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
    longest: int

    @classmethod
    def of(
        cls, pages: Sequence[Sequence[int]], before: Sequence[int], new: Sequence[int]
    ) -> PagedBatch:
        """From the pages of each sequence, its positions before the step, and how many are new."""
        lengths = [length + number for length, number in zip(before, new, strict=True)]
        width = max(map(pages_for, lengths))
        rows = []
        for own, length in zip(pages, lengths, strict=True):
            needed = pages_for(length)
            assert len(own) >= needed, (len(own), length)
            rows.append([*own[:needed], *[0] * (width - needed)])
        return cls(
            torch.tensor([0, *accumulate(new)], dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            torch.tensor(rows, dtype=torch.int32),
            max(new),
            max(lengths),
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


def attend_pages(
    batch: PagedBatch,
    queries_THK: Tensor,
    keys_GRHK: Tensor,
    values_GRHK: Tensor,
    is_batch_invariant: bool = False,
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
        num_splits=1 if is_batch_invariant else None,
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


def can_attend_pages(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> bool:
    """Whether `attend_pages` works for these heads on this device; tried once."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return _is_equal_on_trial(device, dtype, heads, width)


@functools.cache
def _is_equal_on_trial(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> bool:
    """Two sequences, a chunk of a prompt and a single position, over pages that lie in no order."""
    batch = PagedBatch.of([[5, 2, 7], [1, 4]], [20, 24], [17, 1]).to(device)
    generator = torch.Generator().manual_seed(1)
    queries, keys, values = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((18, heads, width), *[(8, PAGE_POSITIONS, heads, width)] * 2)
    )
    expected = attend_pages_plainly(batch, queries, keys, values)
    try:
        found = attend_pages(batch, queries, keys, values)
    except (RuntimeError, ValueError, ImportError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        log.warning("paged_attention=no heads=%d width=%d reason=%s", heads, width, reason)
        return False
    difference = (found - expected).float().abs().max().item()
    if not difference < TOLERANCE:
        log.warning("paged_attention=no heads=%d width=%d difference=%g", heads, width, difference)
        return False
    return True
