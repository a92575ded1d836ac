"""Attention of one step of the scheduler: the new positions of many sequences, each over its own pages.

Every sequence is one call of torch's attention, which reads its pages in place where they follow each other. On CUDA
in half precision all sequences are one call (`emu.generate.paged_attention`).

Shapes: T new positions of all sequences side by side, S positions of a sequence, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emu.generate.page_pool import PagePool, PageTable
from emu.generate.paged_attention import (
    PackedBatch,
    PagedBatch,
    Reading,
    attend_packed,
    attend_pages,
)
from emu.generate.request_state import RequestState


@dataclass(frozen=True)
class Span:
    """The new positions of one request in a step."""

    state: RequestState
    number: int
    start: int
    """Where they begin among those of all requests."""

    @property
    def end(self) -> int:
        """Where they end."""
        return self.start + self.number


@dataclass(frozen=True)
class Tile:
    """Positions of one request that one call of attention takes."""

    table: PageTable
    start: int
    """Their first row among those of all requests."""
    end: int
    length: int
    """Positions of the request up to the last of them."""
    total: int
    """Positions of the request up to the last of this step."""
    mask_TS: Tensor | None
    is_causal: bool


class StepAttention:
    """Writes keys and values of the new positions into the pool and mixes the values that each may see."""

    def __init__(
        self,
        pool: PagePool,
        spans: Sequence[Span],
        device: torch.device,
        tile: int | None = None,
        reading: Reading = "slots",
    ) -> None:
        """`reading` fits the layout of the pool.

        With a `tile`, prompts are attended to in tiles that begin at its multiples, so that the sizes of all calls
        follow from the request alone, not from how its prompt is divided into chunks.
        """
        self._pool, self._spans = pool, spans
        tables = [_table(span) for span in spans]
        slots = [
            table.slots_S[span.state.length :][: span.number]
            for table, span in zip(tables, spans, strict=True)
        ]
        self._slots_T = torch.cat(slots)
        self._tiles: list[Tile] = []
        self._batch: PagedBatch | PackedBatch | None = None
        if reading != "slots" and all(span.state.branches is None for span in spans):
            lengths = [span.state.length for span in spans]
            numbers = [span.number for span in spans]
            if reading == "pages":
                self._batch = PagedBatch.of([t.pages for t in tables], lengths, numbers).to(device)
            else:
                all_slots = [table.slots_S for table in tables]
                self._batch = PackedBatch.of(all_slots, lengths, numbers, device)
        else:
            self._tiles = [
                each for span in spans for each in _tiles(span, tile, device, pool.dtype)
            ]

    def positions_T(self) -> Tensor:
        """The position of each input in its sequence."""
        positions = []
        for span in self._spans:
            branches, length = span.state.branches, span.state.length
            counted_T = torch.arange(length, length + span.number)
            positions.append(counted_T if branches is None else branches.positions_T)
        return torch.cat(positions)

    def __call__(
        self, layer: int, queries_THK: Tensor, keys_THK: Tensor, values_THK: Tensor
    ) -> Tensor:
        """As `emu.generate.kv_cache.Attend`."""
        self._pool.write(layer, self._slots_T, keys_THK, values_THK)
        if isinstance(self._batch, PagedBatch):
            return attend_pages(self._batch, queries_THK, *self._pool.pages(layer))
        if isinstance(self._batch, PackedBatch):
            return attend_packed(self._batch, queries_THK, *self._pool.positions(layer))
        mixed_THK = torch.empty_like(queries_THK)
        table, keys_HSK, values_HSK = None, keys_THK, values_THK
        for tile in self._tiles:
            if tile.table is not table:  # pages apart from each other are copied once for all tiles
                table = tile.table
                keys_HSK, values_HSK = self._pool.read(layer, table, tile.total)
            seen_1HTK = scaled_dot_product_attention(
                queries_THK[tile.start : tile.end].transpose(0, 1)[None],
                keys_HSK[None, :, : tile.length],
                values_HSK[None, :, : tile.length],
                attn_mask=tile.mask_TS,
                is_causal=tile.is_causal,
            )
            mixed_THK[tile.start : tile.end] = seen_1HTK[0].transpose(0, 1)
        return mixed_THK


def _table(span: Span) -> PageTable:
    assert span.state.table is not None
    return span.state.table


def _tiles(span: Span, size: int | None, device: torch.device, dtype: torch.dtype) -> list[Tile]:
    table, branches = _table(span), span.state.branches
    length = span.state.length + span.number
    if branches is not None:
        seen_TS = branches.sees_TB.new_ones(span.number, branches.root)
        mask_TS = torch.cat([seen_TS, branches.sees_TB], dim=1).to(device)
        return [Tile(table, span.start, span.end, length, length, mask_TS, False)]
    tiles = []
    begin = first = span.state.length
    all_TS: Tensor | None = None
    while first < length:
        end = length if size is None else min(length, (first // size + 1) * size)
        number, offset = end - first, span.start + first - span.state.length
        mask_TS = None
        if number > 1 and first > 0:
            if all_TS is None:
                all_TS = _causal_mask(span.number, length, device, dtype)
            mask_TS = all_TS[first - begin : end - begin, :end]
        is_causal = number > 1 and first == 0
        tiles.append(Tile(table, offset, offset + number, end, length, mask_TS, is_causal))
        first = end
    return tiles


def _causal_mask(number: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What the last `number` of `length` positions see: the mask of all tiles, each of which takes a part of it."""
    first = length - number
    if device.type == "cpu":  # as it is added to the logits: booleans are converted in every call
        hidden_TS = torch.full((number, length), -torch.inf, dtype=dtype)
        return hidden_TS.triu(diagonal=first + 1)
    return torch.ones(number, length, dtype=torch.bool, device=device).tril(diagonal=first)
