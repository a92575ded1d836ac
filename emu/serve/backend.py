"""What the door of the server hands to a replica, and what comes back. Light to import: no torch.

An engine that answers several requests at a time, in threads, beside an event loop.
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
from emu.data.image_file import MAX_PIXELS, PictureError, decode_picture
from emu.generate.options import ImageOptions, PromptTooLong, Reply, TextOptions
from emu.serve.errors import ApiError, Problem, refuse
from emu.serve.prompt import Content, Picture
from emu.weights.layout import DECODER, read_picture_factor

if TYPE_CHECKING:
    from emu.generate.engine import Engine  # brings torch, which takes seconds to import


@dataclass(frozen=True)
class Work:
    """One request, checked as far as that goes without the model."""

    prompt: Content
    text: TextOptions | None  # None: no text, an image alone
    image: ImageOptions
    asks_image: bool


Event = str | Reply | Problem
"""Pieces of text, then the reply or the reason why there is none."""


class Backend(Protocol):
    """Whatever answers: a worker of this process, or replicas elsewhere."""

    def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """Pieces of text as they come, at last a `Reply` or a `Problem`; to be left at any time."""
        ...


@dataclass(frozen=True)
class ModelCard:
    """What a caller should know of the served model."""

    name: str
    config: EmuConfig
    picture_factor: int | None
    """What height and width of a drawn picture must be multiples of; None: it draws none."""

    @property
    def draws(self) -> bool:
        """Whether there is a visual decoder."""
        return self.picture_factor is not None

    @staticmethod
    def of(directory: Path, config: EmuConfig, name: str | None = None) -> ModelCard:
        """The card of a model directory, by default under the directory's name.

        Raises ValueError naming a file of the visual decoder that is broken.
        """
        factor = read_picture_factor(directory / DECODER)
        return ModelCard(name or directory.resolve().name, config, factor)


log = logging.getLogger(__name__)


class Worker:
    """Generation runs in threads, so that the event loop stays free for streams and health checks."""

    def __init__(self, engine: Engine, num_threads: int, max_pixels: int = MAX_PIXELS) -> None:
        """`num_threads` requests are worked on at the same time; further ones wait."""
        self._engine = engine
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(num_threads, "generate")

    async def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """Pieces of text as they come, at last the `Reply` or a `Problem`.

        Whoever leaves early (a caller that hung up, a time limit) ends the work at its next token.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        is_left = threading.Event()

        def run() -> None:
            for event in self._answer(work, is_left):
                if is_left.is_set():
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
            is_left.set()
            running.cancel()  # takes it from the line if no thread has begun it

    def _answer(self, work: Work, is_left: threading.Event) -> Iterator[Event]:
        try:
            prompt = [self._decoded(piece) for piece in work.prompt]
            for event in self._engine.stream(
                prompt, work.text, work.image, work.asks_image, max_images=int(work.asks_image)
            ):
                if is_left.is_set():
                    return
                if event != "" and not isinstance(event, Image.Image):  # pictures are in the reply
                    yield event
        except ApiError as error:
            yield error.problem
        except PromptTooLong as error:
            yield Problem(400, str(error), "messages", "context_length_exceeded")
        except ValueError as error:
            yield Problem(400, str(error), code="invalid_value")
        except Exception:
            log.exception("generation=failed")
            yield Problem(500, "the answer failed; the log of the server says why")

    def _decoded(self, piece: str | Picture) -> str | Image.Image:
        if isinstance(piece, str):
            return piece
        try:
            return decode_picture(piece.data, self._max_pixels)
        except PictureError as error:
            message = f"{piece.param}: {error}"
            raise refuse(422, message, piece.param, "invalid_image") from error
