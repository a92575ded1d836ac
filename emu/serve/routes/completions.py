"""`POST /v1/completions`: plain text that follows a text or token ids, and the log-probabilities of both.

Evaluation harnesses score an answer by sending prompt and answer with `echo`, `logprobs` and `max_tokens` 0 or 1. The
start id that every prompt of the model begins with is added if it is absent, and is not echoed, so that tokens and
log-probabilities are those of the ids that were sent.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from emu.generate.prompts import MAX_LOGPROBS, ImageOptions, Reply, TokenScore
from emu.serve.backend import GenerationRequest, ScoredPiece
from emu.serve.errors import ApiError, ErrorResponse
from emu.serve.fields import COMMON_IGNORED, Neutral, check_limit, parse_fields
from emu.serve.openapi import json_body
from emu.serve.replies import finite, sse, usage
from emu.serve.requests import check_positions, check_text, check_text_limits
from emu.serve.sampling import choices_of, seed_of, text_options
from emu.serve.schema import StreamOptions, TextRequest
from emu.serve.server import Server
from emu.serve.streams import DONE, Begun, EventStream, begun

NEUTRAL: Neutral = {
    "best_of": (1, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "presence_penalty": (0, None),
    "suffix": (None, ""),
}
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(TextRequest):
    """The body of `POST /v1/completions`."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
    )
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = False
    default_max_tokens = 16  # OpenAI's

    @property
    def num_logprobs(self) -> int | None:
        """As `TextRequest.num_logprobs`; an echo is made of the scores of the prompt."""
        return 0 if self.logprobs is None and self.echo else self.logprobs

    @property
    def scores_prompt(self) -> bool:
        """As `TextRequest.scores_prompt`."""
        return bool(self.echo)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The texts and lists of ids, one for each completion."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]  # pyright: ignore[reportReturnType]  # a list whose first is an id has ids
        return list(prompt)  # pyright: ignore[reportReturnType]


KNOWN = {
    "": [*CompletionRequest.model_fields, *NEUTRAL, *COMMON_IGNORED],
    "stream_options": [*StreamOptions.model_fields],
    "prompt": [],
}


def router(server: Server) -> APIRouter:
    """The route of plain completions."""
    routes = APIRouter()

    @routes.post("/v1/completions", openapi_extra=json_body(CompletionRequest))
    async def complete(http: Request) -> Response:
        """The text that follows each prompt."""
        timer = server.timer()
        body = await server.json(http)
        request = parse_fields(
            CompletionRequest, body, KNOWN, COMMON_IGNORED, NEUTRAL, '{"prompt": …}'
        )
        works = read_completion(request, server)
        builder = Completions(
            f"cmpl-{server.new_id()}", int(server.now()), server.card.name, request
        )
        if not request.stream:
            answers = await server.answers(http, works, timer)
            return JSONResponse(builder.whole([answer.reply for answer in answers]))
        events = await begun(http, server.streams(works, timer))
        return EventStream(builder.stream(events))

    return routes


def read_completion(request: CompletionRequest, server: Server) -> list[GenerationRequest]:
    """The requests of the engine, `n` for each prompt; raises `ApiError`."""
    limits, prompts = server.limits, request.prompts
    adapter = server.adapter(request.model)
    check_text_limits(request, limits)
    check_limit("prompt", len(prompts) * (request.n or 1), limits.max_choices)
    text = text_options(request, limits, seed_of(request.seed))
    works: list[GenerationRequest] = []
    for number, prompt in enumerate(prompts):
        where = "prompt" if len(prompts) == 1 else f"prompt.{number}"
        if isinstance(prompt, str):
            content = (check_text(prompt, where),)
            check_positions(content, server.card, where)
            work = GenerationRequest(content, text, ImageOptions(), False, (), where, adapter)
        else:
            _check_ids(prompt, where, server)
            work = GenerationRequest((), text, ImageOptions(), False, tuple(prompt), where, adapter)
        works += choices_of(work, request.n)
    return works


def _check_ids(ids: Sequence[int], where: str, server: Server) -> None:
    config = server.card.config
    for number, token in enumerate(ids):
        if token >= config.num_embeddings or token == config.special.image:
            message = (
                f"{where}.{number} is the token id {token}; give ids of text, below "
                f"{config.num_embeddings} and not {config.special.image} (a position of an image)"
            )
            raise ApiError(400, message, f"{where}.{number}", "invalid_value")


@dataclass(frozen=True)
class Completions:
    """Builds the response to one request in OpenAI's schema."""

    id: str
    created: int  # seconds since 1970
    model: str
    request: CompletionRequest

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """All completions, one choice each."""
        choices = [self._choice(*entry) for entry in enumerate(replies)]
        return self._head() | {"choices": choices, "usage": self._usage(replies)}

    async def stream(self, events: Begun) -> AsyncGenerator[str, None]:
        """Server-sent events: the echo with the first text of a choice, then text as it comes, `[DONE]`."""
        replies: list[Reply] = []
        generates = self.request.max_tokens != 0
        async with aclosing(events):
            async for index, event in events:
                if isinstance(event, ErrorResponse):
                    yield sse(event.as_json())
                    break
                if isinstance(event, Reply):
                    replies.append(event)
                    # an echo comes at the end: the scores of the prompt are a part of the reply
                    if self.request.echo:
                        yield self._chunk(self._choice(index, event))
                    else:
                        yield self._chunk(_choice(index, "", None, event.finish_reason))
                elif self.request.echo or not generates:
                    continue
                elif isinstance(event, ScoredPiece):
                    logprobs = None
                    if self.request.logprobs is not None:
                        logprobs = text_logprobs([event.score])
                    yield self._chunk(_choice(index, event.text, logprobs, None))
                elif isinstance(event, str):
                    yield self._chunk(_choice(index, event, None, None))
            else:
                if self.request.includes_usage:
                    yield sse(self._head() | {"choices": [], "usage": self._usage(replies)})
        yield DONE

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        is_empty = self.request.max_tokens == 0
        text = "" if is_empty else reply.text
        scores = () if is_empty else reply.scores
        reason = "length" if is_empty else reply.finish_reason
        if self.request.echo:
            prompt = self._prompt_scores(index, reply)
            text = self._prompt_text(index, prompt) + text
            scores = (*prompt, *scores)
        logprobs = None if self.request.logprobs is None else text_logprobs(scores)
        return _choice(index, text, logprobs, reason)

    def _prompt_scores(self, index: int, reply: Reply) -> Sequence[TokenScore]:
        """The scores of the prompt without the start id that was added to it."""
        sent = self.request.prompts[index // (self.request.n or 1)]
        is_sent = not isinstance(sent, str) and len(sent) == len(reply.prompt_scores)
        return reply.prompt_scores if is_sent else reply.prompt_scores[1:]

    def _prompt_text(self, index: int, scores: Sequence[TokenScore]) -> str:
        sent = self.request.prompts[index // (self.request.n or 1)]
        return sent if isinstance(sent, str) else "".join(score.text for score in scores)

    def _usage(self, replies: Sequence[Reply]) -> dict[str, int]:
        number = self.request.n or 1
        prompts = [
            usage(replies[start : start + number]) for start in range(0, len(replies), number)
        ]
        total = (
            {name: sum(each[name] for each in prompts) for name in prompts[0]} if prompts else {}
        )
        if self.request.max_tokens == 0 and total:
            total |= {"completion_tokens": 0, "total_tokens": total["prompt_tokens"]}
        return total

    def _chunk(self, choice: dict[str, Any]) -> str:
        return sse(self._head() | {"choices": [choice]})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def text_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """The log-probabilities of tokens, in the schema of plain completions; null where nothing predicts a token."""
    lengths = [len(score.text) for score in scores]
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [finite(score.logprob) for score in scores],
        "top_logprobs": [_top(score) for score in scores],
        "text_offset": [0, *itertools.accumulate(lengths)][: len(scores)],
    }


def _top(score: TokenScore) -> dict[str, float | None] | None:
    """The likeliest tokens, and the token itself."""
    if score.logprob is None:
        return None
    top = {text: finite(logprob) for _, text, logprob in score.top}
    return {score.text: finite(score.logprob)} | top
