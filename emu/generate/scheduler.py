"""Continuous batching: requests join and leave at every step, and each step is one forward for all rows.

A row of text and a row that regresses a visual embedding are the same to the layers; only the head that reads the
state differs. Prompts are fed in chunks beside the rows that generate. What a request gives does not depend on
what runs beside it: attention is computed for each sequence on its own, and products of matrices differ by rounding.

Shapes: B rows whose next output is due, T positions of all rows side by side, H heads, K width of a head,
D language width, W entries of the vocabulary.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emu.generate.kv_cache import MAX_IMAGES, projected, run_layers, steadily_projected
from emu.generate.page_pool import PAGE_POSITIONS, PagePool, pages_for
from emu.generate.prefix import image_key, page_keys, weights_key
from emu.generate.request_state import Output, Request, RequestState
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from schemas.validation import Checked


class QueueFull(RuntimeError):
    """As many requests wait as may wait."""


@dataclass(frozen=True)
class ScheduleOptions(Checked):
    """Sizes of a scheduler."""

    num_pages: Annotated[int, Field(ge=1)] = 1024
    """Pages of 16 positions for the keys and values of all requests."""
    max_rows: Annotated[int, Field(ge=1)] = 32
    """Requests that run at the same time."""
    max_waiting: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait for pages or a row; further ones are refused."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Positions of a prompt that are fed at once."""
    max_prompt_positions: Annotated[int, Field(ge=1)] = 512
    """Positions of prompts in one step: bounds how long the rows that generate wait for them."""
    max_cached_images: Annotated[int, Field(ge=0)] = 64
    """Images whose visual embeddings are kept for the next prompt with the same image."""
    deterministic: bool = False
    """In float32 on a CPU, matrix products give a row the same bits whatever runs beside it; fewer than 12 rows are
    slower (docs/decisions/0110)."""


@dataclass(frozen=True)
class Span:
    """The rows of one request in a step."""

    state: RequestState
    start: int
    number: int


class Scheduler:
    """Runs requests of all kinds together over one pool of pages.

    One thread calls `step`; any thread may call `submit` and `abort`.
    """

    def __init__(
        self, model: Emu, tokenizer: EmuTokenizer, options: ScheduleOptions = ScheduleOptions()
    ) -> None:
        self.model, self.options = model, options
        self.device = model.ln_visual.weight.device
        self.pool = PagePool(model.language, options.num_pages)
        self._tokenizer = tokenizer
        self._project = steadily_projected if options.deterministic else projected
        self._images: OrderedDict[bytes, Tensor] = OrderedDict()  # least recently used first
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._aborted: list[RequestState] = []
        self._lock = threading.Lock()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row or for pages."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that take part in the next step."""
        return len(self._running)

    def submit(self, request: Request) -> RequestState:
        """Queues a request.

        Raises QueueFull, and ValueError for a request that could never get its pages.
        """
        needed = pages_for(request.num_positions(self.model.config))
        if needed > self.pool.num_pages:
            raise ValueError(
                f"the request takes up to {needed} pages of {PAGE_POSITIONS} positions, the pool has "
                f"{self.pool.num_pages}; give a shorter prompt or fewer new tokens"
            )
        state = RequestState(request, self.model.config, self._tokenizer, self._embed)
        with self._lock:
            if len(self._waiting) >= self.options.max_waiting + self._num_free_rows():
                raise QueueFull(
                    f"{len(self._waiting)} requests wait, and no more may; try again soon"
                )
            self._waiting.append(state)
        return state

    def abort(self, state: RequestState) -> None:
        """Ends a request: its pages are free at the beginning of the next step."""
        with self._lock:
            self._aborted.append(state)

    @torch.inference_mode()
    def step(self) -> list[tuple[RequestState, Output]]:
        """Admits what fits, feeds one step of every row, and gives what came out.

        Returns at once where nothing runs. After an exception every request is lost: call `clear`.
        """
        self._drop_aborted()
        self._admit()
        spans = self._spans()
        if not spans:
            return []
        hidden_TD = self._forward(spans)
        due: list[RequestState] = []
        rows: list[int] = []
        for span in spans:
            if span.state.fed(span.number):
                due.append(span.state)
                rows.append(span.start + span.number - 1)
            self._register(span.state)
        outputs = self._read(due, hidden_TD[rows]) if due else []
        for state in due:
            if state.phase == "done":
                self._leave(state)
        return outputs

    def clear(self) -> None:
        """Drops every request and its pages."""
        with self._lock:
            self._waiting.clear()
        for state in list(self._running):
            self._leave(state)

    def _num_free_rows(self) -> int:
        return self.options.max_rows - len(self._running)

    def _drop_aborted(self) -> None:
        with self._lock:
            aborted, self._aborted = self._aborted, []
            for state in aborted:
                if state in self._waiting:
                    self._waiting.remove(state)
        for state in aborted:
            if state in self._running:
                self._leave(state)

    def _leave(self, state: RequestState) -> None:
        assert state.table is not None
        self._running.remove(state)
        self.pool.release(state.table)
        state.table, state.inputs_TD, state.phase = None, None, "done"

    def _admit(self) -> None:
        """Starts requests in the order they came, as long as rows and pages are free."""
        admitted: list[RequestState] = []
        weights, images = b"", {}
        while self._waiting and self._num_free_rows() > 0:
            state = self._waiting[0]
            weights = weights or weights_key(self.model)
            prompt, config = state.request.prompt, self.model.config
            pictures = [image_key(weights, pixels) for pixels in prompt.pixels]
            num_queries = config.former.num_queries
            keys = page_keys(weights, prompt.ids, pictures, config.special.image, num_queries)
            table = self.pool.take(keys, pages_for(state.request.num_positions(config)))
            if table is None:
                break
            state.keys, state.table, state.num_registered = keys, table, table.num_shared
            images[state] = pictures
            with self._lock:
                self._waiting.popleft()
            self._running.append(state)
            admitted.append(state)
        if admitted:
            self._begin(admitted, images)

    def _begin(
        self, admitted: Sequence[RequestState], images: dict[RequestState, list[bytes]]
    ) -> None:
        """Gives each new request the inputs of the rest of its prompt."""
        wanted: dict[bytes, Tensor] = {}
        used: dict[RequestState, tuple[list[bytes], int]] = {}
        for state in admitted:
            assert state.table is not None
            length = state.table.num_shared * PAGE_POSITIONS
            ids, pixels = state.request.prompt.ids, state.request.prompt.pixels
            num_places = sum(token == self.model.config.special.image for token in ids[:length])
            first, skipped = divmod(num_places, self.model.config.former.num_queries)
            used[state] = images[state][first:], skipped
            wanted |= dict(zip(images[state][first:], pixels[first:], strict=True))
        encoded = self._encoded(wanted)
        for state, (keys, skipped) in used.items():
            assert state.table is not None
            length = state.table.num_shared * PAGE_POSITIONS
            ids_T = torch.tensor(state.request.prompt.ids[length:], device=self.device)
            inputs_TD = self.model.language.embed(ids_T)
            if keys:
                flat = torch.cat([encoded[key] for key in keys])[skipped:]
                is_place = ids_T == self.model.config.special.image
                inputs_TD = inputs_TD.masked_scatter(is_place[:, None], flat.to(inputs_TD.dtype))
            state.begin(state.table, length, inputs_TD)

    def _encoded(self, wanted: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        """The visual embeddings `QD` of images; each is encoded once."""
        found = {key: self._images[key] for key in wanted if key in self._images}
        missing = [key for key in wanted if key not in found]
        for start in range(0, len(missing), MAX_IMAGES):
            group = missing[start : start + MAX_IMAGES]
            pixels_NCHW = torch.stack([wanted[key] for key in group]).to(self.device)
            embeddings_NQD = self.model.encode_images(pixels_NCHW)
            found |= dict(zip(group, embeddings_NQD, strict=True))
        for key, embeddings_QD in found.items():
            self._images[key] = embeddings_QD
            self._images.move_to_end(key)
        while len(self._images) > self.options.max_cached_images:
            self._images.popitem(last=False)
        return found

    def _spans(self) -> list[Span]:
        """What is fed in this step: every row that generates, and chunks of prompts up to the limit."""
        spans: list[Span] = []
        start, num_prompt = 0, 0
        for state in self._running:
            assert state.inputs_TD is not None
            number = len(state.inputs_TD)
            if state.is_prefill:
                number = min(number, self.options.chunk)
                if num_prompt and num_prompt + number > self.options.max_prompt_positions:
                    continue
                num_prompt += number
            spans.append(Span(state, start, number))
            start += number
        return spans

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        """The hidden states `TD` of all inputs; their keys and values are in the pool afterwards."""
        inputs, positions, slots = [], [], []
        for span in spans:
            state, length = span.state, span.state.length
            assert state.table is not None and state.inputs_TD is not None
            inputs.append(state.inputs_TD[: span.number])
            positions.append(torch.arange(length, length + span.number))
            slots.append(state.table.slots_S[length : length + span.number])
        slots_T = torch.cat(slots)
        masks = {span.start: self._mask(span) for span in spans}

        def attend(layer: int, queries_THK: Tensor, keys_THK: Tensor, values_THK: Tensor) -> Tensor:
            self.pool.write(layer, slots_T, keys_THK, values_THK)
            mixed_THK = torch.empty_like(queries_THK)
            for span in spans:
                assert span.state.table is not None
                end, rows = span.start + span.number, span.state.length + span.number
                keys_HSK, values_HSK = self.pool.read(layer, span.state.table, rows)
                queries_HTK = queries_THK[span.start : end].transpose(0, 1)
                mask = masks[span.start]
                seen_1HTK = scaled_dot_product_attention(
                    queries_HTK[None],
                    keys_HSK[None],
                    values_HSK[None],
                    attn_mask=mask,
                    is_causal=mask is None and span.number > 1,
                )
                mixed_THK[span.start : end] = seen_1HTK[0].transpose(0, 1)
            return mixed_THK

        inputs_TD, positions_T = torch.cat(inputs), torch.cat(positions).to(self.device)
        language = self.model.language
        return run_layers(language, inputs_TD, positions_T, attend, self._project)

    def _mask(self, span: Span) -> Tensor | None:
        """Which positions each input sees, where neither all nor plain causal order says it."""
        before = span.state.length
        if span.number == 1 or before == 0:
            return None
        sees = torch.ones(span.number, before + span.number, dtype=torch.bool, device=self.device)
        return sees.tril(diagonal=before)

    def _register(self, state: RequestState) -> None:
        """Makes the pages known that are full of the prompt now."""
        assert state.table is not None
        while (
            state.num_registered < len(state.keys)
            and (state.num_registered + 1) * PAGE_POSITIONS <= state.length
        ):
            number = state.num_registered
            self.pool.register(state.table, number, state.keys[number])
            state.num_registered += 1

    def _read(
        self, due: Sequence[RequestState], hidden_BD: Tensor
    ) -> list[tuple[RequestState, Output]]:
        """The outputs of rows: the vocabulary head for text, the regression head for images."""
        outputs: list[tuple[RequestState, Output]] = []
        texts = [row for row, state in enumerate(due) if state.phase == "text"]
        images = [row for row, state in enumerate(due) if state.phase == "image"]
        language = self.model.language
        if images:
            regressed_BD = self._project(hidden_BD[images], language.regress_head)
            for row, embedding_D in zip(images, regressed_BD, strict=True):
                outputs += [(due[row], out) for out in due[row].push_embedding(embedding_D)]
        if texts:
            logits_BW = self._project(hidden_BD[texts], language.lm.lm_head).float()
            likeliest = logits_BW.argmax(dim=-1).tolist()
            for row, logits_W, token in zip(texts, logits_BW, likeliest, strict=True):
                chosen = due[row].choose(logits_W, token)
                outputs += [(due[row], out) for out in due[row].push_token(chosen)]
        return outputs

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self.model.language.embed(torch.tensor(ids, device=self.device))
