"""What generates replies to checked requests: an engine of this process, in threads beside the event loop.

Light to import: no torch. `emu.serve.app` has the backend for replicas in other processes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from emu.config import EmuConfig
from emu.decoders import DECODERS, kind_of, read_image_multiple
from emu.generate.prompts import ImageOptions, PromptTooLong, Reply, TextOptions
from emu.serve.errors import ApiError, ErrorResponse
from emu.weights.layout import DECODER
from schemas.images import MAX_PIXELS, ImageError, decode_image

if TYPE_CHECKING:
    from emu.generate.engine import Engine  # imports torch, which takes seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image, and the field of the request that it came in."""

    data: bytes
    param: str


Content = tuple[str | EncodedImage, ...]
"""Texts and images in order."""


@dataclass(frozen=True)
class GenerationRequest:
    """One request, checked as far as possible without the model."""

    prompt: Content
    text: TextOptions | None  # None: no text, only an image
    image: ImageOptions
    image_first: bool  # whether the reply holds an image, which comes first


Event = str | Reply | ErrorResponse
"""Pieces of text, then the reply or the reason why there is none."""


class Backend(Protocol):
    """Generates replies: in this process, or in replicas elsewhere."""

    def events(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Pieces of text as they are generated, at last a `Reply` or an `ErrorResponse`; may be closed at any time."""
        ...

    async def is_ready(self) -> bool:
        """Whether a model is loaded that answers requests, now or when it has finished others."""
        ...


@dataclass(frozen=True)
class ModelCard:
    """What a client should know about the served model."""

    name: str
    config: EmuConfig
    image_multiple: int | None
    """Height and width of a generated image are multiples of it; None: the model generates no images."""
    schedulers: tuple[str, ...]
    """The visual decoder's schedulers by name; where there is none, those of all kinds."""

    @property
    def generates_images(self) -> bool:
        """Whether there is a visual decoder."""
        return self.image_multiple is not None

    @staticmethod
    def of(directory: Path, config: EmuConfig, name: str | None = None) -> ModelCard:
        """The card of a model directory, by default under the directory's name.

        Raises ValueError naming a broken file of the visual decoder.
        """
        folder = directory / DECODER
        multiple = read_image_multiple(folder)
        kinds = DECODERS if multiple is None else [kind_of(folder)]
        schedulers = tuple(dict.fromkeys(s for kind in kinds for s in DECODERS[kind].schedulers))
        return ModelCard(name or directory.resolve().name, config, multiple, schedulers)


class LocalBackend:
    """Generates in threads of this process, so that the event loop stays free for streams and health checks."""

    def __init__(self, engine: Engine, num_threads: int, max_pixels: int = MAX_PIXELS) -> None:
        """Up to `num_threads` requests run at the same time, as one batch; further ones wait."""
        from emu.generate.page_pool import pages_for  # imports torch
        from emu.generate.scheduler import QueueFull, ScheduleOptions

        num_pages = num_threads * pages_for(engine.config.language.max_positions)
        engine.start_batching(ScheduleOptions(num_pages, max_rows=num_threads))
        self._engine, self._queue_full = engine, QueueFull
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(num_threads, "generate")

    async def events(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """As `Backend.events`; closing it early (client disconnect, time limit) stops at the next token."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        is_closed = threading.Event()

        def run() -> None:
            for event in self._generate(request, is_closed):
                if is_closed.is_set():
                    return
                loop.call_soon_threadsafe(queue.put_nowait, event)

        running = loop.run_in_executor(self._threads, run)
        try:
            while True:
                event = await queue.get()
                yield event
                if not isinstance(event, str):
                    break
        finally:
            is_closed.set()
            running.cancel()  # removes it from the queue if no thread has started it

    async def is_ready(self) -> bool:
        """True: the engine is in this process."""
        return True

    def _generate(self, request: GenerationRequest, is_closed: threading.Event) -> Iterator[Event]:
        try:
            prompt = [self._decoded(piece) for piece in request.prompt]
            num_images = int(request.image_first)
            for event in self._engine.stream(
                prompt, request.text, request.image, request.image_first, num_images
            ):
                if is_closed.is_set():
                    return
                if event != "" and not isinstance(event, Image.Image):  # the reply holds images
                    yield event
        except ApiError as error:
            yield error.response
        except PromptTooLong as error:
            yield ErrorResponse(400, str(error), "messages", "context_length_exceeded")
        except ValueError as error:
            yield ErrorResponse(400, str(error), code="invalid_value")
        except self._queue_full:
            yield ErrorResponse(503, "too many requests wait, try again soon", code="overloaded")
        except Exception:
            log.exception("generation=failed")
            yield ErrorResponse(500, "generation failed; see the log of the server")

    def _decoded(self, piece: str | EncodedImage) -> str | Image.Image:
        if isinstance(piece, str):
            return piece
        try:
            return decode_image(piece.data, self._max_pixels)
        except ImageError as error:
            message = str(error.at(piece.param))
            raise ApiError(422, message, piece.param, "invalid_image") from error
