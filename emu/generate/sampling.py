"""The text of one row while it grows, token by token.

Text, token by token: greedy or drawn.

Shapes: B rows, W rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from emu.generate.kv_cache import Continuation
from emu.generate.options import FinishReason, TextOptions
from emu.tokenizer import EmuTokenizer

INCOMPLETE = "\ufffd"  # what sentencepiece shows for bytes that do not make a character yet


class RunningText:
    """Ids in, text out. A piece is handed out only when no later token can change it.

    Held back are bytes of an unfinished character and whatever may be the beginning of a stop
    string. `reason` says why the text ended, once it has.
    """

    def __init__(
        self,
        tokenizer: EmuTokenizer,
        limit: int,
        stop: Iterable[str] = (),
        opens_image: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._stop = tuple(stop)
        self._opens_image = opens_image
        self._num_given = 0  # characters handed out
        self.ids: list[int] = []
        self.text = ""
        self.reason: FinishReason | None = None

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        assert self.reason is None, "the text has ended"
        self.ids.append(token)
        special = self._tokenizer.special
        if token == special.eos:
            self.reason = "stop"
        elif token == special.image_start and self._opens_image:
            self.reason = "image"
        else:
            self._decode()
            if self.reason is None and len(self.ids) >= self._limit:
                self.reason = "length"
        return self._hand_out()

    def push_all(self, ids: Iterable[int]) -> str:
        """The text of several tokens; those after the end are left out."""
        return "".join([self.push(token) for token in ids if self.reason is None])

    def _decode(self) -> None:
        self.text = self._tokenizer.decode(self.ids)
        found = [self.text.find(stop) for stop in self._stop if stop in self.text]
        if found:
            self.text = self.text[: min(found)]
            self.reason = "stop"

    def _hand_out(self) -> str:
        end = len(self.text) if self.reason else self._certain()
        piece = self.text[self._num_given : max(end, self._num_given)]
        self._num_given += len(piece)
        return piece

    def _certain(self) -> int:
        text = self.text.rstrip(INCOMPLETE)
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:length]):
                    held = length
                    break
        return len(text) - held


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
