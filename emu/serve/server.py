"""What all routes share: the backend with its limits, the time of a request, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from emu.generate.prompts import Reply
from emu.serve.backend import (
    Backend,
    Event,
    ImageReady,
    ModelCard,
    Values,
    Work,
    is_last,
)
from emu.serve.bodies import Form, read_form, read_json
from emu.serve.errors import ApiError, ErrorResponse, shown
from emu.serve.limits import Limits
from emu.serve.media import Fetch
from emu.serve.metrics import Metrics
from schemas.sample import Segment

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection: nobody reads the response."""


@dataclass(frozen=True)
class Answer:
    """A whole reply with its images, as PNG."""

    reply: Reply
    images: tuple[Segment, ...]


@dataclass(frozen=True)
class Server:
    """The backend of all routes, and their limits."""

    backend: Backend
    card: ModelCard
    limits: Limits
    fetch: Fetch | None
    metrics: Metrics
    now: Callable[[], float]
    new_id: Callable[[], str]

    def adapter(self, name: str | None) -> str:
        """The adapter that a `model` names, empty for the model alone; raises `ApiError` for one that is not served."""
        if name is None or name == self.card.name:
            return ""
        if name not in self.card.names:
            raise unknown_model(name, self.card)
        return name.removeprefix(f"{self.card.name}:")

    async def json(self, http: Request) -> Any:
        """The decoded body; raises `ApiError`."""
        return await read_json(http, self.limits)

    async def form(self, http: Request) -> Form:
        """The multipart form; raises `ApiError`."""
        return await read_form(http, self.limits)

    def timer(self) -> Timer:
        """The time of a request, which begins now."""
        return Timer(asyncio.get_running_loop().time(), self.limits.timeout_s)

    def events(self, work: Work, timer: Timer) -> AsyncGenerator[Event, None]:
        """The events of one request until its time is over, counted in the metrics."""
        return self.metrics.observed(until_deadline(self.backend.events(work), timer), timer.begun)

    async def answers(self, http: Request, works: Sequence[Work], timer: Timer) -> list[Answer]:
        """The whole replies, which are generated side by side; raises `ApiError` for the first that fails."""
        jobs = [in_time(_answer(self._whole(work, timer)), timer) for work in works]
        if len(jobs) == 1:
            return [await unless_gone(http, jobs[0])]
        return await unless_gone(http, together(jobs))

    async def values(self, http: Request, work: Work, timer: Timer) -> Values:
        """The values of a ranking or of embeddings; raises `ApiError`."""
        return await unless_gone(http, in_time(_values(self._whole(work, timer)), timer))

    def _whole(self, work: Work, timer: Timer) -> AsyncGenerator[Event, None]:
        """The events of a request whose whole result is awaited, in the time of `in_time`."""
        return self.metrics.observed(self.backend.events(work), timer.begun)


@dataclass(frozen=True)
class Timer:
    """When a request began, on the clock of the event loop, and how many seconds it may take."""

    begun: float
    timeout_s: float

    @property
    def deadline(self) -> float:
        """When its time is over."""
        return self.begun + self.timeout_s


def unknown_model(name: str | None, card: ModelCard) -> ApiError:
    """The error for a model that is not served."""
    names = ", ".join(map(shown, card.names))
    message = f"model is {shown(name)}, this server only has {names}"
    return ApiError(404, message, "model", "model_not_found")


async def until_deadline(
    events: AsyncGenerator[Event, None], timer: Timer
) -> AsyncGenerator[Event, None]:
    """The events until the deadline, then an `ErrorResponse`; generation is stopped in either case."""
    try:
        while True:
            async with asyncio.timeout_at(timer.deadline):
                event = await anext(events, None)
            if event is None:
                yield ErrorResponse(500, "generation ended without a reply")
                return
            yield event
            if is_last(event):
                return
    except TimeoutError:
        yield too_late(timer)
    finally:
        await events.aclose()


async def in_time(job: Awaitable[T], timer: Timer) -> T:
    """The result of the job, which is cancelled at the deadline; raises `ApiError` then."""
    try:
        async with asyncio.timeout_at(timer.deadline):
            return await job
    except TimeoutError as error:
        raise ApiError.of(too_late(timer)) from error


def too_late(timer: Timer) -> ErrorResponse:
    """The error for a reply that takes too long."""
    return ErrorResponse(504, f"no complete reply within {timer.timeout_s:g} s", code="timeout")


async def _answer(events: AsyncGenerator[Event, None]) -> Answer:
    images: list[Segment] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ErrorResponse):
                raise ApiError.of(event)
            if isinstance(event, ImageReady):
                images.append(event.segment)
            if isinstance(event, Reply):
                return Answer(event, tuple(images))
    raise ApiError(500, "generation ended without a reply")


async def _values(events: AsyncGenerator[Event, None]) -> Values:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ErrorResponse):
                raise ApiError.of(event)
            if isinstance(event, Values):
                return event
    raise ApiError(500, "the engine ended without a result")


async def together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all jobs; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(http: Request, job: Awaitable[T]) -> T:
    """The result of the job, which is cancelled when the client closes the connection.

    Raises:
        ClientGone: if it has.
    """
    work, gone = asyncio.ensure_future(job), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def merged(
    streams: Sequence[AsyncGenerator[Event, None]],
) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several requests as they come, each with the number of its request; ends after the last."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def forward(number: int, events: AsyncGenerator[Event, None]) -> None:
        async with aclosing(events):
            async for event in events:
                queue.put_nowait((number, event))

    tasks = [asyncio.ensure_future(forward(*entry)) for entry in enumerate(streams)]
    try:
        num_open = len(streams)
        while num_open:
            number, event = await queue.get()
            num_open -= is_last(event)
            yield number, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
