"""Attention over documents side by side: a packed batch holds many in a row, and none sees another.

The language model is transformers' LLaMA; its layers call the attention that is registered here. Without documents it
is the library's own scaled dot-product attention.

- CPU, and float32 on CUDA: a loop of causal attention over the documents. A dense mask over a row of 1,000 positions
  takes six times as long; flex attention has no backward on a CPU, and torch's `varlen_attn` no CPU kernel.
- CUDA in bfloat16 or float16: torch's `varlen_attn`.

Shapes: B rows, L positions of a row, T = B L positions of all rows in reading order, H heads, K width of a head,
N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Function = TypeVar("Function", bound=Callable[..., Any])
IMPLEMENTATION = "emu_documents"
"""The name under which transformers finds the attention."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed batch begin and end; the padding of a row counts as one more."""

    lengths: tuple[int, ...]
    """Positions of each document, over all rows in reading order."""
    bounds_N: Tensor
    """int32, their cumulative sums from 0: one more than there are documents."""
    positions_BL: Tensor
    """int64, from 0 in each document."""
    real: tuple[int, ...]
    """The lengths of the documents that are no padding."""
    longest: int
    """A power of two that no document exceeds: few values, for kernels that are compiled for it."""

    def to(self, device: torch.device | str) -> Documents:
        """The same documents on `device`."""
        bounds_N = self.bounds_N.to(device, non_blocking=True)
        positions_BL = self.positions_BL.to(device, non_blocking=True)
        return Documents(self.lengths, bounds_N, positions_BL, self.real, self.longest)


@dataclass(frozen=True)
class PaddedRows:
    """Where the real positions of right-padded rows stand."""

    cells_T: Tensor
    """Their numbers among all B x L cells, in reading order."""
    positions_T: Tensor
    """Their positions in their own rows."""
    shape: tuple[int, int]
    """B and L."""

    @classmethod
    def of(cls, mask_BL: Tensor) -> PaddedRows:
        """The real positions are those where the mask is true (or 1)."""
        cells_T = mask_BL.flatten().nonzero()[:, 0]
        size, length = mask_BL.shape
        return cls(cells_T, cells_T % length, (size, length))

    def real(self, rows: Tensor) -> Tensor:
        """The real positions `T...` of padded rows `BL...`."""
        return rows.flatten(0, 1).index_select(0, self.cells_T)

    def padded(self, real: Tensor) -> Tensor:
        """The padded rows `BL...` of real positions `T...`, with zeros at the padding."""
        cells = real.new_zeros(self.shape[0] * self.shape[1], *real.shape[1:])
        return cells.index_copy(0, self.cells_T, real).unflatten(0, self.shape)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float, scale: float | None
    ) -> Tensor:
        """Causal attention within each row; queries, keys and values are `1HTK`, the result is `1THK`.

        Real positions precede the padding of their row, so the causal mask hides it from them.
        """
        mixed_BHLK = scaled_dot_product_attention(
            *(
                self.padded(each[0].transpose(0, 1)).transpose(1, 2)
                for each in (queries, keys, values)
            ),
            dropout_p=dropout,
            is_causal=True,
            scale=scale,
        )
        return self.real(mixed_BHLK.transpose(1, 2))[None]


def documents_of(rows: Sequence[Sequence[int]], length: int) -> Documents:
    """The documents of rows of `length` positions from the lengths of each row; what is left of a row is padding."""
    padded = [[*row, length - sum(row)] if sum(row) < length else row for row in rows]
    lengths = tuple(chain.from_iterable(padded))
    assert sum(lengths) == length * len(rows), (rows, length)
    positions = torch.cat([torch.arange(n) for n in lengths])
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    real = tuple(chain.from_iterable(rows))
    longest = 1 << (max(lengths) - 1).bit_length()
    return Documents(lengths, bounds, positions.view(len(rows), length), real, longest)


def _uncompiled(function: Function) -> Function:
    """A function that compiled layers call as it is."""
    wrapped: Any = torch.compiler.disable(function)
    return wrapped


def attend_within(documents: Documents, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention within each document; queries, keys, values and the result are `1HTK`."""
    if queries.device.type == "cuda" and queries.dtype in (torch.bfloat16, torch.float16):
        return _varlen(documents, queries, keys, values)
    return _one_by_one(documents, queries, keys, values)


@_uncompiled  # a compiled loop would be compiled for every list of lengths
def _one_by_one(documents: Documents, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    parts = zip(
        queries.split(documents.lengths, dim=2),
        keys.split(documents.lengths, dim=2),
        values.split(documents.lengths, dim=2),
        strict=True,
    )
    mixed = [scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts]
    return torch.cat(mixed, dim=2)


@_uncompiled  # the number of real positions differs from batch to batch
def _in_rows(
    rows: PaddedRows,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    dropout: float,
    scale: float | None,
) -> Tensor:
    return rows.attend(queries, keys, values, dropout, scale)


def _varlen(documents: Documents, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds_N, longest = documents.bounds_N, documents.longest
    mixed = varlen_attn(
        queries[0].transpose(0, 1).contiguous(),
        keys[0].transpose(0, 1).contiguous(),
        values[0].transpose(0, 1).contiguous(),
        bounds_N,
        bounds_N,
        longest,
        longest,
        window_size=(-1, 0),  # causal
    )
    assert isinstance(mixed, Tensor)
    return mixed.transpose(0, 1)[None]


def register_attention() -> None:
    """Makes the attention known to transformers under `IMPLEMENTATION`; more than once changes nothing."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: nn.Module,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        documents: Documents | PaddedRows | None = None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if documents is None:
            return sdpa_attention_forward(
                module, queries, keys, values, mask, dropout, scaling, **options
            )
        if isinstance(documents, PaddedRows):
            return _in_rows(documents, queries, keys, values, dropout, scaling), None
        return attend_within(documents, queries, keys, values).transpose(1, 2), None

    if IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
