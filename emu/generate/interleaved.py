"""Text and images in one reply, over one cache: text, a drawn image, text that goes on after it.

Shapes: B = 1 row, Q causal queries, D language width.

Visual embeddings, one after the other, each fed back as the next input (paper section 2.3).

Shapes: B rows, Q causal queries, D language width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from emu.data.image_file import to_png
from emu.generate.beam import beam_search
from emu.generate.kv_cache import Continuation
from emu.generate.options import FinishReason, Reply, TextOptions
from emu.generate.prompts import EncodedPrompt
from emu.generate.sampling import RunningText, write
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from schemas.sample import Segment


@torch.inference_mode()
def regress(model: Emu, prompts: Sequence[EncodedPrompt]) -> Tensor:
    """The embeddings `BQD` of the image that follows each prompt; the prompts end in `[IMG]`."""
    return regress_next(Continuation(model, prompts))


@torch.inference_mode()
def regress_next(rows: Continuation) -> Tensor:
    """The embeddings `BQD` of an image, predicted from rows whose last token is `[IMG]`.

    All but the last embedding are in the cache afterwards; `close_image` feeds the last.
    """
    predicted = [rows.model.language.regress(rows.hidden_BD)]
    for _ in range(rows.model.config.former.num_queries - 1):
        rows.feed(predicted[-1])
        predicted.append(rows.model.language.regress(rows.hidden_BD))
    return torch.stack(predicted, dim=1)


@torch.inference_mode()
def close_image(rows: Continuation, embeddings_BQD: Tensor) -> None:
    """Feeds the last embedding and `[/IMG]`, so that text can go on after the image."""
    rows.feed(embeddings_BQD[:, -1])
    rows.feed_ids([rows.model.config.special.image_end] * rows.num_rows)


Event = str | Image.Image | Reply


@dataclass(frozen=True)
class Draw:
    """How pictures come into a reply."""

    picture: Callable[[Tensor, int], Image.Image]  # of embeddings BQD, and which one it is
    at_once: bool  # the prompt ends in [IMG]: an image comes first
    max_images: int  # images that the model may choose to draw, and the asked one


class Interleaver:
    """Writes one reply; its events can be followed as they come, and left at any of them."""

    def __init__(
        self,
        model: Emu,
        tokenizer: EmuTokenizer,
        prompt: EncodedPrompt,
        options: TextOptions | None,
        draw: Draw | None,
    ) -> None:
        """Runs the prompt. Without `draw` the reply is text alone, without `options` no text."""
        self._rows = Continuation(model, [prompt])
        self._config = model.config
        self._tokenizer, self._draw = tokenizer, draw
        self._options = options or TextOptions()
        self._writes = options is not None
        self._num_prompt = self._num_used = len(prompt.ids)
        self._num_written = self._num_images = 0
        self._segments: list[Segment] = []

    def events(self) -> Iterator[Event]:
        """Pieces of text (empty ones too) and pictures as they come; at last the whole reply."""
        if self._draw is not None and self._draw.at_once:
            yield self._drawn(self._draw)
        reason: FinishReason = "length" if self._writes else "stop"
        while self._writes and (room := self._room()) > 0:
            text = RunningText(self._tokenizer, room, self._options.stop, self._may_choose())
            yield from self._pieces(text)
            self._keep(text)
            assert text.reason is not None
            reason = text.reason
            if self._draw is None or reason != "image":
                break
            if not self._fits_image():
                reason = "length"
                break
            self._rows.feed_ids([self._config.special.image_start])
            yield self._drawn(self._draw)
        num_reply = self._num_used - self._num_prompt
        yield Reply(tuple(self._segments), reason, self._num_prompt, num_reply)

    def _pieces(self, text: RunningText) -> Iterator[str]:
        if self._options.num_beams > 1:
            (ids,) = beam_search(self._rows, [self._room()], self._options)
            yield text.push_all(ids)
            return
        for (piece,) in write(self._rows, [text], self._options):
            yield piece

    def _keep(self, text: RunningText) -> None:
        self._num_written += len(text.ids)
        self._num_used += len(text.ids)
        if text.text:
            self._segments.append(Segment.of_text(text.text, role="assistant"))

    def _drawn(self, draw: Draw) -> Image.Image:
        embeddings_BQD = regress_next(self._rows)
        close_image(self._rows, embeddings_BQD)
        self._num_used += self._config.former.num_queries + 1
        picture = draw.picture(embeddings_BQD, self._num_images)
        self._num_images += 1
        width, height = picture.size
        segment = Segment.of_image(to_png(picture), "png", width, height, role="assistant")
        self._segments.append(segment)
        return picture

    def _room(self) -> int:
        left = self._config.language.max_positions - self._num_used
        return min(left, self._options.max_new_tokens - self._num_written)

    def _may_choose(self) -> bool:
        # a beam search leaves no single row from which an image could be regressed
        few = self._draw is not None and self._num_images < self._draw.max_images
        return few and self._options.num_beams == 1

    def _fits_image(self) -> bool:
        needed = self._config.former.num_queries + 1
        return self._num_used + needed <= self._config.language.max_positions
