"""Continuous batching: requests join and leave at every step, and each step is one forward for all rows.

A row of text and a row that regresses a visual embedding are the same to the layers; only the head that reads the
state differs. Prompts are fed in chunks beside the rows that generate. What a request gives does not depend on
what runs beside it: attention is computed for each sequence on its own, and products of matrices differ by rounding.

Shapes: R rows that are read, T positions of all requests side by side, D language width, W entries of the vocabulary.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from types import MappingProxyType
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from emu.generate.adapters import AdaptedProjection, Adapter
from emu.generate.beam import BeamState
from emu.generate.counters import Counters
from emu.generate.kv_cache import MAX_IMAGES, Project, run_layers
from emu.generate.page_pool import PAGE_POSITIONS, PagePool, pages_for
from emu.generate.paged_attention import Reading, reading_of
from emu.generate.prefix import ContentKeys, image_key, page_keys, weights_key
from emu.generate.products import Products
from emu.generate.prompt_inputs import PromptInputs, Rest
from emu.generate.request_state import Output, Request, RequestState
from emu.generate.scoring import RankState
from emu.generate.step_attention import Span, StepAttention
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
    max_packed_mb: Annotated[int, Field(ge=0)] = 1024
    """Memory for a copy of the language model's weights that a CPU multiplies faster, in float32; a model that needs
    more is not copied (docs/decisions/0121)."""
    deterministic: bool = False
    """In float32 on a CPU, a request gives the same bits whatever runs beside it, prefix hits included.

    That holds without it, too, where the weights are copied (`max_packed_mb`), since it costs nothing there; otherwise
    it costs time for few rows (docs/decisions/0110)."""


class Scheduler:
    """Runs requests of all kinds together over one pool of pages.

    One thread calls `step`; any thread may call `submit`, `abort` and `counters`.
    """

    def __init__(
        self,
        model: Emu,
        tokenizer: EmuTokenizer,
        options: ScheduleOptions = ScheduleOptions(),
        adapters: Mapping[str, Adapter] = MappingProxyType({}),
        products: Products | None = None,
    ) -> None:
        """`tokenizer` is that of requests without an adapter; `adapters` are chosen by their names.

        `products` shares the copy of the weights with other schedulers; without them it has one of its own.
        """
        self.model, self.options, self.adapters = model, options, adapters
        self.device = model.ln_visual.weight.device
        weight, sizes = model.ln_visual.weight, model.config.language
        heads = sizes.num_heads
        self._reading: Reading = reading_of(
            self.device, weight.dtype, heads, sizes.hidden_size // heads
        )
        self.pool = PagePool(model.language, options.num_pages, self._reading != "slots")
        self._tokenizer = tokenizer
        max_bytes = options.max_packed_mb * 2**20
        self._project = products or Products(model.language, max_bytes, options.deterministic)
        self.is_steady = options.deterministic or self._project.is_packed
        """Whether a request gives the same bits whatever runs beside it."""
        # chunks that begin at a multiple of the tile
        whole = max(options.chunk // PAGE_POSITIONS, 1) * PAGE_POSITIONS
        self._chunk = whole if self.is_steady else options.chunk
        self._tile = PAGE_POSITIONS if self.is_steady else None
        num_together = 1 if self.is_steady else MAX_IMAGES
        self._inputs = PromptInputs(model, options.max_cached_images, num_together)
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._aborted: list[RequestState] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row or for pages."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that take part in the next step."""
        return len(self._running)

    def counters(self) -> Counters:
        """The counters as they are now."""
        counts = self._counts
        return Counters(
            num_waiting=self.num_waiting,
            num_running=self.num_running,
            num_pages=self.pool.num_pages,
            num_pages_used=self.pool.num_used,
            num_pages_registered=self.pool.num_registered,
            prefix_pages_wanted=counts["prefix_pages_wanted"],
            prefix_pages_hit=self.pool.num_hits,
            images_wanted=self._inputs.num_wanted,
            images_hit=self._inputs.num_hits,
            steps=counts["steps"],
            positions=counts["positions"],
            tokens=counts["tokens"],
            embeddings=counts["embeddings"],
            finished=counts["finished"],
            aborted=counts["aborted"],
        )

    def submit(self, request: Request) -> RequestState:
        """Queues a request.

        Raises QueueFull, and ValueError for an unknown adapter and a request that could never get its pages.
        """
        if request.adapter and request.adapter not in self.adapters:
            raise ValueError(f"no adapter {request.adapter!r}; there are {sorted(self.adapters)}")
        needed = pages_for(request.num_positions(self.model.config))
        if needed > self.pool.num_pages:
            raise ValueError(
                f"the request takes up to {needed} pages of {PAGE_POSITIONS} positions, the pool has "
                f"{self.pool.num_pages}; give a shorter prompt or fewer new tokens"
            )
        state = self._state(request)
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
        outputs = self._scored_prompts(spans, hidden_TD)
        due: list[Span] = []
        for span in spans:
            if span.state.fed(span.number):
                due.append(span)
            self._register(span.state)
        outputs += self._read(due, hidden_TD)
        for span in due:
            if span.state.phase == "done":
                self._leave(span.state)
                self._counts["finished"] += 1
        self._counts["steps"] += 1
        self._counts["positions"] += len(hidden_TD)
        return outputs

    def clear(self) -> None:
        """Drops every request and its pages."""
        with self._lock:
            self._waiting.clear()
        for state in list(self._running):
            self._leave(state)

    def _state(self, request: Request) -> RequestState:
        kind = RequestState
        if request.answers:
            kind = RankState
        elif request.text is not None and request.text.num_beams > 1:
            kind = BeamState
        tokenizer = self._tokenizer
        if request.adapter:
            tokenizer = self.adapters[request.adapter].tokenizer
        return kind(request, self.model.config, tokenizer, self._inputs.embed)

    def _num_free_rows(self) -> int:
        return self.options.max_rows - len(self._running)

    def _drop_aborted(self) -> None:
        with self._lock:
            aborted, self._aborted = self._aborted, []
            for state in aborted:
                if state in self._waiting:
                    self._waiting.remove(state)
                    self._counts["aborted"] += 1
        for state in aborted:
            if state in self._running:
                self._leave(state)
                self._counts["aborted"] += 1

    def _leave(self, state: RequestState) -> None:
        assert state.table is not None
        self._running.remove(state)
        self.pool.release(state.table)
        state.leave()

    def _admit(self) -> None:
        """Starts requests in the order they came, as long as rows and pages are free."""
        rests: list[Rest] = []
        weights = b""
        while self._waiting and self._num_free_rows() > 0:
            state = self._waiting[0]
            weights = weights or self._weights()
            content = self._content(state, weights)
            request, prompt = state.request, state.request.prompt
            readable = [] if request.scores_prompt else content.pages
            table = self.pool.take(readable, pages_for(request.num_positions(self.model.config)))
            if table is None:
                break
            state.table, state.num_registered = table, table.num_shared
            rests.append(Rest(prompt, content.images, table.num_shared * PAGE_POSITIONS))
            with self._lock:
                self._waiting.popleft()
            self._running.append(state)
            self._counts["prefix_pages_wanted"] += len(readable)
        if rests:
            admitted = self._running[-len(rests) :]
            for state, rest, inputs in zip(admitted, rests, self._inputs.of(rests), strict=True):
                assert state.table is not None
                state.begin(state.table, rest.length, inputs)

    def _weights(self) -> bytes:
        """The key of the weights as they are now; products are computed with them from now on."""
        key = weights_key(self.model)
        self._project.refresh(key)
        return key

    def _content(self, state: RequestState, weights: bytes) -> ContentKeys:
        """The keys of a prompt; computed once for a request, however often it is looked at."""
        if state.content is None or state.content.weights != weights:
            prompt, config = state.request.prompt, self.model.config
            images = [image_key(weights, pixels) for pixels in prompt.pixels]
            num_queries = config.former.num_queries
            before = weights
            if state.request.adapter:
                before = weights_key(self.model, self.adapters[state.request.adapter].key)
            pages = page_keys(before, prompt.ids, images, config.special.image, num_queries)
            state.content = ContentKeys(weights, images, pages)
        return state.content

    def _spans(self) -> list[Span]:
        """What is fed in this step: every row that generates, and chunks of prompts up to the limit."""
        taken: list[tuple[RequestState, int]] = []
        num_prompt = 0
        for state in self._running:
            assert state.inputs_TD is not None
            number = len(state.inputs_TD)
            if state.is_prefill or state.request.answers:
                number = min(number, self._chunk) if state.is_prefill else number
                if num_prompt and num_prompt + number > self.options.max_prompt_positions:
                    continue
                num_prompt += number
            taken.append((state, number))
        taken.sort(key=lambda entry: entry[0].request.adapter)  # those of an adapter together
        starts = accumulate((number for _, number in taken), initial=0)
        return [Span(*entry, start) for entry, start in zip(taken, starts, strict=False)]

    def _projection(self, spans: Sequence[Span]) -> Project:
        """How the layers multiply: with the adapters of the rows, if there are any."""
        groups: list[tuple[slice, Adapter]] = []
        for name, group in groupby(spans, key=lambda span: span.state.request.adapter):
            if name:
                own = list(group)
                groups.append((slice(own[0].start, own[-1].end), self.adapters[name]))
        return AdaptedProjection(self._project, groups) if groups else self._project

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        """The hidden states `TD` of all inputs; their keys and values are in the pool afterwards."""
        inputs: list[Tensor] = []
        for span in spans:
            assert span.state.inputs_TD is not None
            inputs.append(span.state.inputs_TD[: span.number])
        attend = StepAttention(self.pool, spans, self.device, self._tile, self._reading)
        positions_T = attend.positions_T().to(self.device)
        project = self._projection(spans)
        return run_layers(self.model.language, torch.cat(inputs), positions_T, attend, project)

    def _scored_prompts(
        self, spans: Sequence[Span], hidden_TD: Tensor
    ) -> list[tuple[RequestState, Output]]:
        """The log-probabilities of prompts that are asked for and complete now."""
        outputs: list[tuple[RequestState, Output]] = []
        for span in spans:
            state = span.state
            if not (state.request.scores_prompt and state.is_prefill):
                continue
            num_later = len(state.request.prompt.ids) - 1 - state.length
            rows_TD = hidden_TD[span.start : span.start + min(span.number, num_later)]
            if not len(
                rows_TD
            ):  # a chunk of the last position alone, which predicts the first new token
                continue
            logits_TW = self._logits(rows_TD, [state] * len(rows_TD))
            outputs += [(state, out) for out in state.take_prompt_logits(logits_TW)]
        return outputs

    def _register(self, state: RequestState) -> None:
        """Makes the pages known that are full of the prompt now."""
        assert state.table is not None and state.content is not None
        keys = state.content.pages
        while (
            state.num_registered < len(keys)
            and (state.num_registered + 1) * PAGE_POSITIONS <= state.length
        ):
            number = state.num_registered
            self.pool.register(state.table, number, keys[number])
            state.num_registered += 1

    def _logits(self, rows_RD: Tensor, states: Sequence[RequestState]) -> Tensor:
        """The logits `RW` of rows of these states.

        Tokens that came with an adapter (`[USER]`, `[ASSISTANT]`) are none for requests without one.
        """
        logits_RW = self._project(rows_RD, self.model.language.lm.lm_head).float()
        num_own = len(self._tokenizer)
        if num_own < logits_RW.shape[1]:
            plain = [row for row, state in enumerate(states) if not state.request.adapter]
            logits_RW[torch.tensor(plain, dtype=torch.long), num_own:] = -torch.inf
        return logits_RW

    def _read(self, due: Sequence[Span], hidden_TD: Tensor) -> list[tuple[RequestState, Output]]:
        """The outputs of rows: the vocabulary head for text, the regression head for images."""
        outputs: list[tuple[RequestState, Output]] = []
        texts = [span for span in due if span.state.phase == "text"]
        images = [span for span in due if span.state.phase == "image"]
        language = self.model.language
        if images:
            rows_RD = hidden_TD[[span.end - 1 for span in images]]
            regressed_RD = self._project(rows_RD, language.regress_head)
            for span, embedding_D in zip(images, regressed_RD, strict=True):
                made = span.state.take_embedding(embedding_D)
                outputs += [(span.state, out) for out in made]
        if texts:
            read = [range(span.end - span.state.num_read, span.end) for span in texts]
            rows_RD = hidden_TD[[row for rows in read for row in rows]]
            states = [s.state for s, rows in zip(texts, read, strict=True) for _ in rows]
            logits_RW = self._logits(rows_RD, states)
            likeliest, first = logits_RW.argmax(dim=-1).tolist(), 0
            self._inputs.prepare(likeliest)
            for span, rows in zip(texts, read, strict=True):
                own = slice(first, first + len(rows))
                first = own.stop
                made = span.state.take_logits(logits_RW[own], likeliest[own])
                outputs += [(span.state, out) for out in made]
            self._inputs.prepare([])  # weights may change before the next step
            self._counts["tokens"] += len(likeliest)
        self._counts["embeddings"] += len(images)
        return outputs
