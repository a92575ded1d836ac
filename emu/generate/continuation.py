"""A batch of sequences that grows: one key-value cache for text steps and for visual steps.

Shapes: B rows, L new positions, S all positions so far (padding included), D language width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu


class Continuation:
    """Prompts of different lengths, left padded, and what has been fed after them.

    `hidden_BD` is the state after the last position, from which the next token or the next visual
    embedding is predicted. A row gives what it gives alone: padding is masked and not counted in
    its positions.
    """

    def __init__(self, model: Emu, prompts: Sequence[EncodedPrompt]) -> None:
        """Runs the prompts once; the Causal Former sees each image once."""
        self.model = model
        self.device = model.ln_visual.weight.device
        ids_BL, self._mask_BS = self._left_padded(prompts)
        embeddings_NQD = None
        pixels = [image for prompt in prompts for image in prompt.pixels]
        if pixels:
            embeddings_NQD = model.encode_images(torch.stack(pixels).to(self.device))
        self._cache = DynamicCache()
        positions_BL = (self._mask_BS.long().cumsum(1) - 1).clamp(min=0)
        self._next_B = positions_BL[:, -1] + 1
        self._forward(model.embed(ids_BL, embeddings_NQD), positions_BL)

    @property
    def num_rows(self) -> int:
        """Sequences in the batch."""
        return len(self.hidden_BD)

    def feed(self, inputs_BLD: Tensor) -> Tensor:
        """Appends the same number of positions to every row; gives their hidden states `BLD`."""
        added = inputs_BLD.shape[1]
        seen = self._mask_BS.new_ones(len(inputs_BLD), added)
        self._mask_BS = torch.cat([self._mask_BS, seen], dim=1)
        steps = torch.arange(added, device=self.device)
        positions_BL = self._next_B[:, None] + steps
        self._next_B = self._next_B + added
        return self._forward(inputs_BLD, positions_BL)

    def feed_ids(self, ids_B: Sequence[int]) -> None:
        """Appends one token to every row."""
        self.feed(self.model.language.embed(torch.tensor(ids_B, device=self.device)[:, None]))

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order; a row may be named several times."""
        index = torch.tensor(rows, device=self.device)
        self._cache.batch_select_indices(index)
        self._mask_BS, self._next_B = self._mask_BS[index], self._next_B[index]
        self.hidden_BD = self.hidden_BD[index]

    def _forward(self, inputs_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        mask = None if bool(self._mask_BS.all()) else self._mask_BS
        hidden_BLD = self.model.language(inputs_BLD, mask, self._cache, positions_BL)
        self.hidden_BD = hidden_BLD[:, -1]
        return hidden_BLD

    def _left_padded(self, prompts: Sequence[EncodedPrompt]) -> tuple[Tensor, Tensor]:
        longest = max(len(prompt.ids) for prompt in prompts)
        pad = self.model.config.special.pad
        gaps = [longest - len(prompt.ids) for prompt in prompts]
        rows = [[pad] * gap + list(prompt.ids) for gap, prompt in zip(gaps, prompts, strict=True)]
        mask = [[False] * gap + [True] * (longest - gap) for gap in gaps]
        ids_BL = torch.tensor(rows, device=self.device)
        return ids_BL, torch.tensor(mask, device=self.device)
