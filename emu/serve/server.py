"""What all routes share: the backend with its limits, the time of a request, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from emu.generate.prompts import Reply
from emu.serve.backend import Backend, Event, ImageReady, ModelCard, Values, Work, is_last
from emu.serve.bodies import Form, read_form, read_json
from emu.serve.deadline import Deadline
from emu.serve.errors import ApiError, ErrorResponse, shown
from emu.serve.limits import Limits
from emu.serve.media import Fetch
from emu.serve.metrics import Metrics
from schemas.sample import Segment

T = TypeVar("T")
Numbered = AsyncGenerator[tuple[int, Event], None]
"""Events, each with the number of its request."""


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

    async def events(self, work: Work, timer: Timer, number: int = 0) -> Numbered:
        """The events of one request until its time is over, counted in the metrics; the last as `is_last` says."""
        deadline, watch = Deadline(timer.deadline), self.metrics.watch(timer.begun)
        events = self.backend.events(work)
        next_event = events.__anext__
        try:
            while True:
                with deadline:
                    event = await next_event()
                watch.see(event)
                yield number, event
                if is_last(event):
                    return
        except StopAsyncIteration:
            yield number, ErrorResponse(500, "generation ended without a reply")
        except TimeoutError:
            yield number, too_late(timer)
        finally:
            deadline.close()
            await events.aclose()

    def streams(self, works: Sequence[Work], timer: Timer) -> Numbered:
        """The events of requests that are answered side by side, as they come."""
        events = [self.events(work, timer, number) for number, work in enumerate(works)]
        return events[0] if len(events) == 1 else merged(events)

    async def answers(self, http: Request, works: Sequence[Work], timer: Timer) -> list[Answer]:
        """The whole replies, which are generated side by side; raises `ApiError` for the first that fails."""
        jobs = [in_time(self._answer(work, timer), timer) for work in works]
        if len(jobs) == 1:
            return [await unless_gone(http.receive, jobs[0])]
        return await unless_gone(http.receive, together(jobs))

    async def values(self, http: Request, work: Work, timer: Timer) -> Values:
        """The values of a ranking or of embeddings; raises `ApiError`."""
        return await unless_gone(http.receive, in_time(_values(self.backend.events(work)), timer))

    async def _answer(self, work: Work, timer: Timer) -> Answer:
        images: list[Segment] = []
        watch = self.metrics.watch(timer.begun)
        async with aclosing(self.backend.events(work)) as events:
            async for event in events:
                watch.see(event)
                if isinstance(event, str):
                    continue
                if isinstance(event, ErrorResponse):
                    raise ApiError.of(event)
                if isinstance(event, ImageReady):
                    images.append(event.segment)
                if isinstance(event, Reply):
                    return Answer(event, tuple(images))
        raise ApiError(500, "generation ended without a reply")


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


async def in_time(job: Awaitable[T], timer: Timer) -> T:
    """The result of the job, which is cancelled at the deadline; raises `ApiError` then."""
    deadline = Deadline(timer.deadline)
    try:
        with deadline:
            return await job
    except TimeoutError as error:
        raise ApiError.of(too_late(timer)) from error
    finally:
        deadline.close()


def too_late(timer: Timer) -> ErrorResponse:
    """The error for a reply that takes too long."""
    return ErrorResponse(504, f"no complete reply within {timer.timeout_s:g} s", code="timeout")


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


async def unless_gone(receive: Receive, job: Awaitable[T]) -> T:
    """The result of the job, which is cancelled when the client closes the connection.

    Raises:
        ClientGone: if it has.
    """
    task, is_gone = asyncio.current_task(), False
    assert task is not None
    num_cancelled = task.cancelling()

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await job
    except asyncio.CancelledError:
        if is_gone and task.uncancel() <= num_cancelled:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


async def merged(streams: Sequence[Numbered]) -> Numbered:
    """The events of several requests as they come; ends after the last."""
    queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def forward(events: Numbered) -> None:
        async with aclosing(events):
            async for event in events:
                queue.put_nowait(event)

    tasks = [asyncio.ensure_future(forward(events)) for events in streams]
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
