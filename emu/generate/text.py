"""Text, token by token: greedy or drawn.

Shapes: B rows, W rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from emu.generate.continuation import Continuation
from emu.generate.options import TextOptions
from emu.generate.running_text import RunningText

MIN_TEMPERATURE = 1e-8  # below it float32 has no room left; the draw is the likeliest token anyway


@torch.inference_mode()
def write(
    rows: Continuation, texts: Sequence[RunningText], options: TextOptions
) -> Iterator[list[str]]:
    """Writes until every text has ended; gives the new text of each row after each step.

    The last token of a row is not fed, so the caller decides what follows it. Whoever stops
    iterating stops the work.
    """
    choose = Chooser(options, rows.num_rows)
    eos, pad = rows.model.config.special.eos, rows.model.config.special.pad
    num_ids = 1  # the start id counts, as in the released code
    while True:
        logits_BW = rows.model.language.head(rows.hidden_BD).float()
        if num_ids < options.min_length:
            logits_BW[:, eos] = -torch.inf
        chosen = choose(logits_BW)
        pieces = [
            "" if text.reason else text.push(token)
            for text, token in zip(texts, chosen, strict=True)
        ]
        yield pieces
        if all(text.reason for text in texts):
            return
        rows.feed_ids(
            [pad if text.reason else token for text, token in zip(texts, chosen, strict=True)]
        )
        num_ids += 1


class Chooser:
    """Picks one token for each row. A row has its own generator, so rows do not disturb others."""

    def __init__(self, options: TextOptions, num_rows: int) -> None:
        self._options = options
        seeds = (options.seed + row for row in range(num_rows))
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits_BW: Tensor) -> list[int]:
        """The ids of the next tokens."""
        if not self._options.do_sample:
            return logits_BW.argmax(dim=-1).tolist()
        # on the processor in float32: the same seed draws the same tokens on every device
        logits_BW = logits_BW.float().cpu()
        # the largest becomes 0 first, so that a temperature near 0 cannot overflow
        logits_BW = logits_BW - logits_BW.amax(dim=-1, keepdim=True)
        logits_BW = logits_BW / max(self._options.temperature, MIN_TEMPERATURE)
        chances_BW = torch.softmax(logits_BW, dim=-1)
        chances_BW = nucleus(chances_BW, self._options.top_p)
        return [
            int(torch.multinomial(chances, 1, generator=generator))
            for chances, generator in zip(chances_BW, self._generators, strict=True)
        ]


def nucleus(chances_BW: Tensor, top_p: float) -> Tensor:
    """Keeps the smallest set of most likely tokens that holds `top_p`; the rest become 0."""
    if top_p >= 1:
        return chances_BW
    ordered, places = chances_BW.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    beyond = before >= top_p
    beyond[..., 0] = False  # float32 rounds a tiny top_p to 0, and the likeliest stays in any case
    ordered = ordered.masked_fill(beyond, 0.0)
    return torch.zeros_like(chances_BW).scatter(-1, places, ordered)
