"""A request of the scheduler, and its state: what its next inputs are, and what came out so far.

Every input is an embedding, so a state holds inputs and not tokens: the rest of the prompt, the last token of a
text, the last visual embedding of an image, or the last embedding and `[/IMG]`, after which text follows.

Shapes: T positions to be fed, Q causal queries, D language width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emu.config import EmuConfig
from emu.generate.page_pool import PageTable
from emu.generate.prompts import EncodedPrompt, FinishReason, TextOptions
from emu.generate.sampling import Detokenizer, Sampler
from emu.tokenizer import EmuTokenizer


@dataclass(frozen=True)
class Request:
    """What is asked for after one prompt. Beam search is not a request."""

    prompt: EncodedPrompt
    """Ends in `[IMG]` where an image comes first."""
    text: TextOptions | None = TextOptions()
    """None: no text, only an image."""
    image_first: bool = False
    """Whether the visual embeddings of an image come first."""
    max_images: int = 0
    """The first image and those that the model may open."""
    row: int = 0
    """Added to the seed: the number of the row in its batch."""

    def __post_init__(self) -> None:
        if self.text is None and not self.image_first:
            raise ValueError(
                "text is None and image_first is False, and nothing would be generated"
            )
        if self.text is not None and self.text.num_beams > 1:
            raise ValueError(f"num_beams is {self.text.num_beams}, the scheduler has no beams")

    def num_positions(self, config: EmuConfig) -> int:
        """The most positions that prompt and reply can take."""
        num_queries = config.former.num_queries
        if self.text is None:
            return len(self.prompt.ids) + num_queries
        num_images = max(self.max_images, int(self.image_first))
        wanted = self.text.max_new_tokens + num_images * (num_queries + 1)
        return min(len(self.prompt.ids) + wanted, config.language.max_positions)


@dataclass(frozen=True)
class Finished:
    """The last event of a request."""

    reason: FinishReason


Output = str | Tensor | Finished
"""A piece of text (one per token, perhaps empty), the visual embeddings `QD` of an image, or the end."""
Phase = Literal["waiting", "text", "image", "done"]
Embed = Callable[[Sequence[int]], Tensor]
"""The input embeddings `TD` of token ids."""


class RequestState:
    """One request: `phase` says which head reads the state after its last position."""

    def __init__(
        self, request: Request, config: EmuConfig, tokenizer: EmuTokenizer, embed: Embed
    ) -> None:
        self.request = request
        self.phase: Phase = "waiting"
        self.table: PageTable | None = None
        self.keys: list[bytes] = []
        """Of the pages that the prompt fills."""
        self.num_registered = 0  # pages
        self.length = 0
        """Positions in the cache."""
        self.inputs_TD: Tensor | None = None
        """What is fed next."""
        self.texts: list[Detokenizer] = []
        self.num_used = len(request.prompt.ids)
        """Positions of prompt and reply that count, whether they are in the cache or not."""
        self._config, self._tokenizer, self._embed = config, tokenizer, embed
        self._options = request.text or TextOptions()
        self._num_tokens = self._num_images = 0
        self._regressed: list[Tensor] = []
        self._num_ids = 1

    @property
    def is_prefill(self) -> bool:
        """Whether positions of the prompt are still to be fed."""
        return self.length < len(self.request.prompt.ids)

    def begin(self, table: PageTable, length: int, inputs_TD: Tensor) -> None:
        """Starts with `length` positions in shared pages; `inputs_TD` are the rest of the prompt."""
        self.table, self.length, self.inputs_TD = table, length, inputs_TD
        self.phase = "image" if self.request.image_first else "text"
        if self.phase == "text":
            self._begin_text()

    def fed(self, number: int) -> bool:
        """Notes that the first `number` inputs are in the cache; true if none is left."""
        assert self.inputs_TD is not None
        self.length += number
        self.inputs_TD = self.inputs_TD[number:]
        return len(self.inputs_TD) == 0

    def choose(self, logits_W: Tensor, likeliest: int) -> int:
        """The next token from its logits, which are changed in place; `likeliest` is known already."""
        eos = self._config.special.eos
        if self._num_ids < self._options.min_length:
            logits_W[eos] = -torch.inf
            likeliest = int(logits_W.argmax()) if likeliest == eos else likeliest
        if not self._options.do_sample:
            return likeliest
        (token,) = self._sample(logits_W[None])
        return token

    def push_token(self, token: int) -> list[Output]:
        """Takes the next token of the text; gives what it makes known."""
        text = self.texts[-1]
        outputs: list[Output] = [text.push(token)]
        self._num_ids += 1
        if text.reason is None:
            self.inputs_TD = self._embed([token])
            return outputs
        self._num_tokens += len(text.ids)
        self.num_used += len(text.ids)
        if text.reason != "image":
            return [*outputs, self._finish(text.reason)]
        if self.num_used + self._image_positions > self._config.language.max_positions:
            return [*outputs, self._finish("length")]
        self.phase = "image"
        self.inputs_TD = self._embed([token])
        return outputs

    def push_embedding(self, embedding_D: Tensor) -> list[Output]:
        """Takes the next visual embedding of the image; the last one makes it known."""
        self._regressed.append(embedding_D)
        if len(self._regressed) < self._config.former.num_queries:
            self.inputs_TD = embedding_D[None]
            return []
        outputs: list[Output] = [torch.stack(self._regressed)]
        self._regressed = []
        self._num_images += 1
        self.num_used += self._image_positions
        if self.request.text is None:
            return [*outputs, self._finish("stop")]
        if self._max_tokens() <= 0:
            return [*outputs, self._finish("length")]
        end_1D = self._embed([self._config.special.image_end])
        self.inputs_TD = torch.cat([embedding_D[None], end_1D])
        self.phase = "text"
        self._begin_text()
        return outputs

    @property
    def _image_positions(self) -> int:
        return self._config.former.num_queries + 1  # and `[/IMG]`

    def _begin_text(self) -> None:
        may_open = self._num_images < self.request.max_images
        text = Detokenizer(self._tokenizer, self._max_tokens(), self._options.stop, may_open)
        self.texts.append(text)
        # every text of a reply starts from the seed, as the loop over one reply does
        self._sample = Sampler(self._options, 1, self.request.row)
        self._num_ids = 1  # the start id counts, as in the released code

    def _max_tokens(self) -> int:
        left = self._config.language.max_positions - self.num_used
        return min(left, self._options.max_new_tokens - self._num_tokens)

    def _finish(self, reason: FinishReason) -> Finished:
        self.phase = "done"
        return Finished(reason)
