"""Keys and values of many sequences in one memory: pages of 16 positions with reference counts.

A page that is full of a prompt's positions may be shared: it is registered under the key of its content
(`emu.generate.prefix`) and stays, when no sequence uses it any more, until its memory is needed (least recently used
first). The pages of a sequence lie one after the other where they can, and are then read in place.

Shapes: H heads, S positions of a sequence, T positions of any sequences side by side, M positions of the memory, G
pages of R positions, K width of a head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.models.language_model import LanguageModel

PAGE_POSITIONS = 16


def pages_for(num_positions: int) -> int:
    """The pages that hold this many positions."""
    return -(-num_positions // PAGE_POSITIONS)


@dataclass(frozen=True)
class PageTable:
    """Where the positions of one sequence lie."""

    pages: tuple[int, ...]
    num_shared: int
    """Pages at the beginning that were filled before and are only read."""
    slots_S: Tensor
    """The index of each position in the memory."""
    is_run: bool
    """Whether the pages follow each other, so that nothing is copied to read them."""


class PagePool:
    """The memory of all pages, and who uses them.

    `num_used` counts the pages that sequences use. All others can be had, those that only wait for
    another prompt with the same content included.
    """

    def __init__(
        self, language: LanguageModel, num_pages: int, positions_first: bool = False
    ) -> None:
        """With `positions_first` the positions of a page follow each other in memory, all heads of each together, as
        one call of attention for many sequences reads them; otherwise those of a head do."""
        sizes, weight = language.lm.config, language.lm.model.embed_tokens.weight
        heads, width = sizes.num_attention_heads, sizes.hidden_size // sizes.num_attention_heads
        num_slots = num_pages * PAGE_POSITIONS
        shape = (2, num_slots, heads, width) if positions_first else (2, heads, num_slots, width)
        self.positions_first, self.dtype = positions_first, weight.dtype
        # not zeros: only positions that were written are read, and what no one needs takes no memory on a CPU
        self._layers = [weight.new_empty(shape) for _ in range(sizes.num_hidden_layers)]
        self._is_taken = bytearray(num_pages)  # 1: used or registered
        self._references = [0] * num_pages
        self._registered: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._keys: dict[int, bytes] = {}  # of the registered pages
        self.num_pages = num_pages
        self.num_used = 0
        self.num_hits = 0
        """Pages that were shared instead of computed."""

    @property
    def num_registered(self) -> int:
        """Pages whose content another prompt may share."""
        return len(self._registered)

    def take(self, keys: Sequence[bytes], num_pages: int) -> PageTable | None:
        """Pages for one sequence, the first of them shared as far as `keys` are known.

        None if they do not fit at present; nothing has changed then.
        """
        shared = self._known(keys)
        for page in shared:
            self._use(page)
        num_new = num_pages - len(shared)
        if num_new > self.num_pages - self.num_used:
            self._release(shared)
            return None
        while self._is_taken.count(0) < num_new:
            self._evict()
        new = self._find(num_new, shared[-1] + 1 if shared else None)
        for page in new:
            self._use(page)
        self.num_hits += len(shared)
        return self._table([*shared, *new], len(shared))

    def register(self, table: PageTable, number: int, key: bytes) -> None:
        """Makes page `number` of a sequence, which is full, known under the key of its content."""
        page = table.pages[number]
        if key not in self._registered and page not in self._keys:
            self._registered[key] = page
            self._keys[page] = key

    def release(self, table: PageTable) -> None:
        """Takes the pages back from a sequence."""
        self._release(table.pages)

    def write(self, layer: int, slots_T: Tensor, keys_THK: Tensor, values_THK: Tensor) -> None:
        """Writes the keys and values of positions of any sequences."""
        if self.positions_first:
            keys_NHK, values_NHK = self._layers[layer]
            keys_NHK.index_copy_(0, slots_T, keys_THK)
            values_NHK.index_copy_(0, slots_T, values_THK)
            return
        keys_HNK, values_HNK = self._layers[layer]
        keys_HNK.index_copy_(1, slots_T, keys_THK.transpose(0, 1))
        values_HNK.index_copy_(1, slots_T, values_THK.transpose(0, 1))

    def read(self, layer: int, table: PageTable, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values `HSK` of a sequence."""
        memory = self._layers[layer]
        if self.positions_first:
            memory = memory.transpose(1, 2)
        if table.is_run:
            start = table.pages[0] * PAGE_POSITIONS
            keys_HSK, values_HSK = memory[:, :, start : start + length]
        else:
            keys_HSK, values_HSK = memory.index_select(2, table.slots_S[:length])
        return keys_HSK, values_HSK

    def positions(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values `MHK`, position by position; only with `positions_first`."""
        assert self.positions_first, "the positions of a head follow each other"
        keys, values = self._layers[layer]
        return keys, values

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values, as pages of positions `GRHK`; only with `positions_first`."""
        keys, values = self.positions(layer)
        shape = (self.num_pages, PAGE_POSITIONS)
        return keys.unflatten(0, shape), values.unflatten(0, shape)

    def _known(self, keys: Sequence[bytes]) -> list[int]:
        pages = []
        for key in keys:
            page = self._registered.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def _use(self, page: int) -> None:
        self.num_used += self._references[page] == 0
        self._references[page] += 1
        self._is_taken[page] = 1

    def _release(self, pages: Sequence[int]) -> None:
        for page in reversed(pages):  # so that the end of a prompt is evicted before its beginning
            self._references[page] -= 1
            assert self._references[page] >= 0, f"page {page} was released twice"
            if self._references[page]:
                continue
            self.num_used -= 1
            if page in self._keys:
                self._registered.move_to_end(self._keys[page])
            else:
                self._is_taken[page] = 0

    def _evict(self) -> None:
        key = next(key for key, page in self._registered.items() if not self._references[page])
        page = self._registered.pop(key)
        del self._keys[page]
        self._is_taken[page] = 0

    def _find(self, number: int, wanted: int | None) -> list[int]:
        """Free pages: from `wanted` on if they are free, else one after the other, else any."""
        run = bytes(number)
        if wanted is not None and self._is_taken[wanted : wanted + number] == run:
            return list(range(wanted, wanted + number))
        start = self._is_taken.find(run)
        if start >= 0:
            return list(range(start, start + number))
        return [page for page, is_taken in enumerate(self._is_taken) if not is_taken][:number]

    def _table(self, pages: list[int], num_shared: int) -> PageTable:
        pages_P1 = torch.tensor(pages)[:, None]
        slots_S = (pages_P1 * PAGE_POSITIONS + torch.arange(PAGE_POSITIONS)).flatten()
        is_run = pages == list(range(pages[0], pages[0] + len(pages)))
        return PageTable(tuple(pages), num_shared, slots_S.to(self._layers[0].device), is_run)
