"""Decodes text token by token: chooses tokens, and turns them into text.

Shapes: B rows, W entries of the vocabulary.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from emu.generate.kv_cache import DecodeState
from emu.generate.prompts import FinishReason, TextOptions
from emu.tokenizer import EmuTokenizer

INCOMPLETE = "\ufffd"  # what sentencepiece returns for bytes that do not form a character yet
MIN_TEMPERATURE = 1e-8  # float32 cannot divide by less; the sample is the likeliest token anyway


class Detokenizer:
    """Turns ids into text. A piece is returned only when no later token can change it.

    Bytes of an unfinished character, and whatever may be the beginning of a stop string, are held
    back. `reason` says why the text ended, once it has.
    """

    def __init__(
        self,
        tokenizer: EmuTokenizer,
        limit: int,
        stop: Iterable[str] = (),
        opens_image: bool = False,
    ) -> None:
        """`limit` is the maximum number of tokens; with `opens_image`, `[IMG]` ends the text."""
        self._tokenizer = tokenizer
        self._limit = limit
        self._stop = tuple(stop)
        self._opens_image = opens_image
        self._num_returned = 0  # characters
        self.ids: list[int] = []
        self.text = ""
        self.reason: FinishReason | None = None

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
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
        return self._next_piece()

    def push_all(self, ids: Iterable[int]) -> str:
        """The text of several tokens; those after the end are ignored."""
        return "".join([self.push(token) for token in ids if self.reason is None])

    def _decode(self) -> None:
        self.text = self._tokenizer.decode(self.ids)
        found = [self.text.find(stop) for stop in self._stop if stop in self.text]
        if found:
            self.text = self.text[: min(found)]
            self.reason = "stop"

    def _next_piece(self) -> str:
        end = len(self.text) if self.reason else self._num_certain()
        piece = self.text[self._num_returned : max(end, self._num_returned)]
        self._num_returned += len(piece)
        return piece

    def _num_certain(self) -> int:
        text = self.text.rstrip(INCOMPLETE)
        num_held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), num_held, -1):
                if text.endswith(stop[:length]):
                    num_held = length
                    break
        return len(text) - num_held


class Sampler:
    """Chooses one token per row. Each row has its own generator and does not affect the others."""

    def __init__(self, options: TextOptions, num_rows: int, first_row: int = 0) -> None:
        self._options = options
        seeds = (options.seed + first_row + row for row in range(num_rows))
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits_BW: Tensor) -> list[int]:
        """The ids of the next tokens."""
        if not self._options.do_sample:
            return logits_BW.argmax(dim=-1).tolist()
        # on the CPU in float32: the same seed samples the same tokens on every device
        logits_BW = logits_BW.float().cpu()
        # the largest becomes 0 first, so that a temperature near 0 cannot overflow
        logits_BW = logits_BW - logits_BW.amax(dim=-1, keepdim=True)
        logits_BW = logits_BW / max(self._options.temperature, MIN_TEMPERATURE)
        probabilities_BW = nucleus(torch.softmax(logits_BW, dim=-1), self._options.top_p)
        return [
            int(torch.multinomial(probabilities_W, 1, generator=generator))
            for probabilities_W, generator in zip(probabilities_BW, self._generators, strict=True)
        ]


def nucleus(probabilities_BW: Tensor, top_p: float) -> Tensor:
    """Keeps the smallest set of likeliest tokens whose sum reaches `top_p`; the others become 0."""
    if top_p >= 1:
        return probabilities_BW
    sorted_BW, indices_BW = probabilities_BW.sort(dim=-1, descending=True)
    before_BW = sorted_BW.cumsum(dim=-1) - sorted_BW
    is_beyond_BW = before_BW >= top_p
    is_beyond_BW[..., 0] = False  # float32 rounds a tiny top_p to 0; the likeliest token stays
    sorted_BW = sorted_BW.masked_fill(is_beyond_BW, 0.0)
    return torch.zeros_like(probabilities_BW).scatter(-1, indices_BW, sorted_BW)


@torch.inference_mode()
def decode_text(
    state: DecodeState, texts: Sequence[Detokenizer], options: TextOptions
) -> Iterator[list[str]]:
    """Decodes until every text has ended; yields the new text of each row after each step.

    The last token of a row is not fed, so the caller decides what follows it. Generation stops
    when the caller stops iterating.
    """
    sample = Sampler(options, state.num_rows)
    eos, pad = state.model.config.special.eos, state.model.config.special.pad
    num_ids = 1  # the start id counts, as in the released code
    while True:
        logits_BW = state.model.language.head(state.hidden_BD).float()
        if num_ids < options.min_length:
            logits_BW[:, eos] = -torch.inf
        tokens = sample(logits_BW)
        yield [
            "" if text.reason else text.push(token)
            for text, token in zip(texts, tokens, strict=True)
        ]
        if all(text.reason for text in texts):
            return
        state.feed_ids(
            [pad if text.reason else token for text, token in zip(texts, tokens, strict=True)]
        )
        num_ids += 1


def to_png(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
