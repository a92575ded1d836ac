"""`POST /v1/rank` and `/v1/embeddings`: how likely each of several answers is, and where images and texts lie.

Both take a text, a part (`{"type": "image_url", …}`), or a list of parts wherever an input is asked for.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from emu.serve.backend import Content, EmbedRequest, RankRequest
from emu.serve.errors import ApiError
from emu.serve.fields import COMMON_IGNORED, Neutral, Strict, parse_fields
from emu.serve.media import MediaSource, read_media
from emu.serve.openapi import json_body
from emu.serve.requests import Turn, check_positions, check_text, to_prompt
from emu.serve.schema import ImagePart, ImageUrl, TextPart, VideoPart, VideoUrl
from emu.serve.server import Server

InputPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
Parts = Annotated[list[InputPart], Field(min_length=1, fail_fast=True)]


class RankBody(Strict):
    """The body of `POST /v1/rank`."""

    prompt: str | Parts
    candidates: list[str] = Field(min_length=1, fail_fast=True)
    score: Literal["released", "sum"] = "released"
    model: str | None = None


class EmbedBody(Strict):
    """The body of `POST /v1/embeddings`; token ids are not inputs here."""

    input: str | Annotated[list[str | InputPart | Parts], Field(min_length=1, fail_fast=True)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"


EMBED_NEUTRAL: Neutral = {"dimensions": (None,)}
PARTS = {
    name: [
        *dict.fromkeys([*TextPart.model_fields, *ImagePart.model_fields, *VideoPart.model_fields])
    ]
    for name in ("prompt", "input")
} | {"image_url": [*ImageUrl.model_fields], "video_url": [*VideoUrl.model_fields]}
RANK_KNOWN = {"": [*RankBody.model_fields, *COMMON_IGNORED]} | PARTS
EMBED_KNOWN = {"": [*EmbedBody.model_fields, *EMBED_NEUTRAL, *COMMON_IGNORED]} | PARTS


def router(server: Server) -> APIRouter:
    """The routes of rankings and embeddings."""
    routes = APIRouter()

    @routes.post("/v1/rank", openapi_extra=json_body(RankBody))
    async def rank(http: Request) -> Response:
        """The candidates, the likeliest answer to the prompt first, each with its loss."""
        timer = server.timer()
        body = await server.json(http)
        request = parse_fields(RankBody, body, RANK_KNOWN, COMMON_IGNORED, {}, '{"prompt": …}')
        adapter = server.adapter(request.model)
        _check_candidates(request.candidates, server.limits.max_candidates)
        (content,) = await read_inputs([("prompt", request.prompt)], server)
        prompt = to_prompt([Turn("user", content)], server.card.uses_dialogue(adapter))
        check_positions((*prompt, max(request.candidates, key=len)), server.card, "prompt")
        work = RankRequest(prompt, tuple(request.candidates), request.score, adapter=adapter)
        (losses,) = (await server.values(http, work, timer)).rows
        order = sorted(range(len(losses)), key=losses.__getitem__)
        data = [
            {"index": index, "candidate": request.candidates[index], "loss": losses[index]}
            for index in order
        ]
        return JSONResponse({"object": "list", "model": server.card.name, "data": data})

    @routes.post("/v1/embeddings", openapi_extra=json_body(EmbedBody))
    async def embed(http: Request) -> Response:
        """A vector of length 1 for each input: the mean of its visual embeddings."""
        timer = server.timer()
        body = await server.json(http)
        request = parse_fields(
            EmbedBody, body, EMBED_KNOWN, COMMON_IGNORED, EMBED_NEUTRAL, '{"input": …}'
        )
        adapter = server.adapter(request.model)
        named = _named_inputs(request)
        if len(named) > server.limits.max_candidates:
            message = (
                f"input holds {len(named)} inputs, the limit is {server.limits.max_candidates}"
            )
            raise ApiError(400, message, "input", "above_limit")
        contents = await read_inputs(named, server)
        for (param, _), content in zip(named, contents, strict=True):
            check_positions(content, server.card, param)
        rows = (
            await server.values(http, EmbedRequest(tuple(contents), adapter=adapter), timer)
        ).rows
        is_float = request.encoding_format == "float"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": list(row) if is_float else _packed(row),
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        body = {"object": "list", "model": server.card.name, "data": data, "usage": usage}
        return JSONResponse(body)

    return routes


Input = str | TextPart | ImagePart | VideoPart | Sequence[TextPart | ImagePart | VideoPart]


def _named_inputs(request: EmbedBody) -> list[tuple[str, Input]]:
    if isinstance(request.input, str):
        return [("input", request.input)]
    return [(f"input.{number}", each) for number, each in enumerate(request.input)]


def _check_candidates(candidates: Sequence[str], limit: int) -> None:
    if len(candidates) > limit:
        message = f"candidates holds {len(candidates)} texts, the limit is {limit}"
        raise ApiError(400, message, "candidates", "above_limit")
    for number, candidate in enumerate(candidates):
        param = f"candidates.{number}"
        check_text(candidate, param)
        if not candidate.strip():
            message = f"{param} is empty, give a text of at least one visible character"
            raise ApiError(400, message, param, "invalid_value")


async def read_inputs(named: Sequence[tuple[str, Input]], server: Server) -> list[Content]:
    """The content of each input, with its field; raises `ApiError`."""
    pieces = [_pieces(param, each) for param, each in named]
    sources = [piece for content in pieces for piece in content if isinstance(piece, MediaSource)]
    media = {}
    if sources:
        media = await asyncio.to_thread(read_media, sources, server.limits, server.fetch)
    return [
        tuple(p if isinstance(p, str) else media[p.param] for p in content) for content in pieces
    ]


def _pieces(param: str, given: Input) -> list[str | MediaSource]:
    if isinstance(given, str):
        if not given:
            raise ApiError(400, f"{param} is empty, give a text", param, "invalid_value")
        return [check_text(given, param)]
    if isinstance(given, TextPart | ImagePart | VideoPart):
        return [_piece(param, given)]
    return [_piece(f"{param}.{number}", part) for number, part in enumerate(given)]


def _piece(param: str, part: TextPart | ImagePart | VideoPart) -> str | MediaSource:
    if isinstance(part, TextPart):
        return check_text(part.text, f"{param}.text")
    if isinstance(part, ImagePart):
        return MediaSource(f"{param}.image_url.url", part.image_url.url)
    return MediaSource(f"{param}.video_url.url", part.video_url.url, part.video_url.num_frames)


def _packed(row: Sequence[float]) -> str:
    """Little-endian float32 in base64, as OpenAI's client asks for."""
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
