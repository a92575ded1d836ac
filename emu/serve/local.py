"""Answers requests with an engine of this process, in threads beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from PIL import Image

from emu.data.video import VideoError, read_frames
from emu.generate.prompts import (
    DecodedImage,
    EncodedPrompt,
    ImagePosition,
    NegativePromptTooLong,
    Piece,
    PromptTooLong,
    Reply,
    TokenScore,
)
from emu.serve.backend import (
    Content,
    EmbedRequest,
    EncodedImage,
    EncodedVideo,
    EngineStats,
    Event,
    GenerationRequest,
    Health,
    ImageBegun,
    ImageReady,
    RankRequest,
    ScoredPiece,
    Values,
    Work,
    is_last,
)
from emu.serve.errors import ApiError, ErrorResponse
from schemas.images import MAX_PIXELS, ImageError, open_image

if TYPE_CHECKING:
    from emu.generate.engine import Engine  # imports torch, which takes seconds

log = logging.getLogger(__name__)

SCALED_ABOVE = 4_000_000
"""Pixels above which a JPEG is decoded at a smaller scale, of at least `SCALED_SIDES` sides of the model's input."""
SCALED_SIDES = 4
MAX_TEXTS = 16
"""Texts whose embeddings are regressed together."""


class LocalBackend:
    """Generates in threads of this process, so that the event loop stays free for streams and health checks."""

    def __init__(
        self,
        engine: Engine,
        num_threads: int,
        max_pixels: int = MAX_PIXELS,
        adapters: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Up to `num_threads` requests run at the same time, as one batch; further ones wait.

        Raises ValueError or FileNotFoundError for an adapter that cannot be loaded.
        """
        from emu.generate.page_pool import pages_for  # imports torch
        from emu.generate.scheduler import QueueFull, ScheduleOptions

        self._adapters = {name: engine.load_adapter(name, path) for name, path in adapters.items()}
        num_pages = num_threads * pages_for(engine.config.language.max_positions)
        self._loop = engine.start_batching(ScheduleOptions(num_pages, max_rows=num_threads))
        self._engine, self._queue_full = engine, QueueFull
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(num_threads, "generate")
        self._decoding = threading.Lock()
        self._num_waiting = 0

    async def events(self, request: Work) -> AsyncGenerator[Event, None]:
        """As `Backend.events`; closing it early (client disconnect, time limit) stops at the next token."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        is_closed = threading.Event()

        def run() -> None:
            loop.call_soon_threadsafe(self._count_waiting, -1)
            for event in self._answer(request, is_closed):
                if is_closed.is_set():
                    return
                loop.call_soon_threadsafe(queue.put_nowait, event)

        self._count_waiting(1)
        running = self._threads.submit(run)
        try:
            while True:
                event = await queue.get()
                yield event
                if is_last(event):
                    break
        finally:
            is_closed.set()
            if running.cancel():  # no thread has started it
                self._count_waiting(-1)

    def _count_waiting(self, change: int) -> None:
        self._num_waiting += change

    async def health(self) -> Health:
        """Ready: the engine is in this process."""
        return Health(True)

    async def stats(self) -> Sequence[EngineStats]:
        """The figures of the engine."""
        counts = asdict(self._loop.scheduler.counters())
        counts["num_waiting"] += self._num_waiting
        return [EngineStats(counts)]

    def _answer(self, request: Work, is_closed: threading.Event) -> Iterator[Event]:
        try:
            if isinstance(request, GenerationRequest):
                yield from self._generate(request, is_closed)
            elif isinstance(request, RankRequest):
                yield self._rank(request)
            else:
                yield self._embed(request)
        except ApiError as error:
            yield error.response
        except NegativePromptTooLong as error:
            assert isinstance(request, GenerationRequest), "only images have one"
            code = "context_length_exceeded"
            yield ErrorResponse(400, str(error), request.negative_param, code)
        except PromptTooLong as error:
            yield ErrorResponse(400, str(error), request.param, "context_length_exceeded")
        except ValueError as error:
            yield ErrorResponse(400, str(error), code="invalid_value")
        except self._queue_full:
            yield ErrorResponse(503, "too many requests wait, try again soon", code="overloaded")
        except Exception:
            log.exception("generation=failed")
            yield ErrorResponse(500, "generation failed; see the log of the server")

    def _generate(self, request: GenerationRequest, is_closed: threading.Event) -> Iterator[Event]:
        prompt = self._of_ids(request.ids) if request.ids else self._pieces(request.prompt)
        score: TokenScore | None = None
        events = self._engine_of(request).stream(
            prompt,
            request.text,
            request.image,
            request.image_first,
            max_images=int(request.image_first),
            in_order=False,
            is_wanted=lambda: not is_closed.is_set(),
        )
        for event in events:
            if is_closed.is_set():
                return
            assert not isinstance(event, Image.Image), "images come out of order"
            if isinstance(event, ImagePosition):
                yield ImageBegun(event.number)
            elif isinstance(event, DecodedImage):
                yield ImageReady(event.number, event.segment)
            elif isinstance(event, TokenScore):
                score = event  # of the piece that follows
            elif isinstance(event, Reply):
                yield _without_images(event)
            elif score is not None:
                yield ScoredPiece(event, score)
            elif event != "":
                yield event

    def _of_ids(self, ids: Sequence[int]) -> EncodedPrompt:
        """Ids as a prompt; every prompt of the model begins with the start id."""
        bos = self._engine.config.special.bos
        return EncodedPrompt(tuple(ids) if ids[0] == bos else (bos, *ids))

    def _engine_of(self, request: Work) -> Engine:
        return self._adapters[request.adapter] if request.adapter else self._engine

    def _rank(self, request: RankRequest) -> Values:
        losses = self._engine_of(request).candidate_losses(
            self._pieces(request.prompt), request.candidates, request.score
        )
        return Values((tuple(losses),))

    def _embed(self, request: EmbedRequest) -> Values:
        """The mean of an input's visual embeddings, of length 1: an image's own, or those that a text leads to."""
        import torch

        from emu.generate.kv_cache import MAX_IMAGES

        prompts = [self._pieces(content) for content in request.inputs]
        engine = self._engine_of(request)
        found: dict[int, torch.Tensor] = {}
        images = [n for n, p in enumerate(prompts) if len(p) == 1 and not isinstance(p[0], str)]
        texts = [n for n in range(len(prompts)) if n not in set(images)]
        with torch.inference_mode():
            for start in range(0, len(images), MAX_IMAGES):
                group = images[start : start + MAX_IMAGES]
                pixels = [p for n in group for p in prompts[n] if isinstance(p, torch.Tensor)]
                weight = engine.model.ln_visual.weight
                pixels_NCHW = torch.stack(pixels).to(weight.device)
                found |= zip(group, engine.model.encode_images(pixels_NCHW), strict=True)
            for start in range(0, len(texts), MAX_TEXTS):
                group = texts[start : start + MAX_TEXTS]
                found |= zip(group, engine.regress_image([prompts[n] for n in group]), strict=True)
            means_ND = torch.stack(
                [found[n].float().mean(dim=0).cpu() for n in range(len(prompts))]
            )
            rows = torch.nn.functional.normalize(means_ND, dim=-1).tolist()
        return Values(tuple(map(tuple, rows)))

    def _pieces(self, content: Content) -> list[Piece]:
        """The pieces of a prompt; images are decoded one by one and kept at the size of the model's input."""
        pieces: list[Piece] = []
        for piece in content:
            if isinstance(piece, str):
                pieces.append(piece)
            elif isinstance(piece, EncodedVideo):
                pieces += self._frames(piece)
            else:
                pieces.append(self._pixels(piece))
        return pieces

    def _pixels(self, image: EncodedImage) -> Piece:
        from emu.models.visual import normalise  # imports torch

        side = self._engine.config.vision.image_size
        try:
            opened = open_image(image.data, self._max_pixels)
            if opened.width * opened.height <= SCALED_ABOVE:
                return normalise(opened.decode(), side)
            with self._decoding:  # one large image at a time
                return normalise(opened.decode((SCALED_SIDES * side, SCALED_SIDES * side)), side)
        except ImageError as error:
            message = str(error.at(image.param))
            raise ApiError(422, message, image.param, "invalid_image") from error

    def _frames(self, video: EncodedVideo) -> list[Piece]:
        from emu.models.visual import normalise  # imports torch

        side = self._engine.config.vision.image_size
        try:
            with self._decoding:
                frames = read_frames(video.data, video.num_frames, self._max_pixels)
                return [normalise(frame, side) for frame in frames]
        except VideoError as error:
            message = f"{video.param}: {error}"
            raise ApiError(422, message, video.param, "invalid_video") from error
        except ModuleNotFoundError as error:
            raise ApiError(
                400, f"{video.param}: {error}", video.param, "unsupported_value"
            ) from error


def _without_images(reply: Reply) -> Reply:
    """The reply with empty images: their bytes have gone ahead."""
    segments = tuple(s if s.kind == "text" else replace(s, image=b"") for s in reply.segments)
    return replace(reply, segments=segments)
