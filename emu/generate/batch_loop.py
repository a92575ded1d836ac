"""What comes out of requests: of one alone or a list in the caller's thread, or of many callers through one thread."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import MappingProxyType

from emu.generate.adapters import Adapter
from emu.generate.page_pool import pages_for
from emu.generate.products import Products
from emu.generate.request_state import Finished, Output, Request, RequestState
from emu.generate.scheduler import ScheduleOptions, Scheduler
from emu.generate.step_thread import LoopClosed, StepThread
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer

log = logging.getLogger(__name__)

POLL_S = 0.02
"""Seconds after which a waiting caller looks whether its request is still wanted."""

Outputs = Generator[tuple[RequestState, Output], None, None]
"""What comes out of requests, in order; closing it ends them."""


class StepFailed(RuntimeError):
    """A step raised an error, which ended every request that ran."""


def run_requests(
    model: Emu,
    tokenizer: EmuTokenizer,
    requests: Sequence[Request],
    adapters: Mapping[str, Adapter] = MappingProxyType({}),
    products: Products | None = None,
) -> Outputs:
    """Runs the requests together, in memory that is theirs alone, and gives what comes out.

    `products` has a copy of the weights; without it none is made. Generation stops when the caller stops iterating.
    """
    num_pages = sum(pages_for(request.num_positions(model.config)) for request in requests)
    options = ScheduleOptions(
        num_pages, max_rows=len(requests), max_cached_images=0, max_packed_mb=0
    )
    scheduler = Scheduler(model, tokenizer, options, adapters, products)
    for request in requests:
        scheduler.submit(request)
    while scheduler.num_waiting or scheduler.num_running:
        yield from scheduler.step()


class BatchLoop:
    """A thread that steps one scheduler for the requests of all other threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._inboxes: dict[RequestState, queue.SimpleQueue[Output | Exception]] = {}
        self._thread = StepThread("batch-loop", self._has_work, self._step, self._end)
        self._thread.start()

    def outputs(self, request: Request, is_wanted: Callable[[], bool] | None = None) -> Outputs:
        """What comes out of one request; closing the iterator early ends it at the next step.

        So does `is_wanted` if it turns false, also while nothing comes out; the iterator then ends without `Finished`.

        Raises QueueFull if too many wait, ValueError if the request can never fit, StepFailed if a step failed, and
        LoopClosed.
        """
        inbox: queue.SimpleQueue[Output | Exception] = queue.SimpleQueue()
        with self._thread.adding():
            state = self.scheduler.submit(request)
            self._inboxes[state] = inbox
        try:
            while True:
                try:
                    output = inbox.get(timeout=None if is_wanted is None else POLL_S)
                except queue.Empty:
                    if is_wanted is not None and not is_wanted():
                        return
                    continue
                if isinstance(output, Exception):
                    raise output
                yield state, output
                if isinstance(output, Finished):
                    return
        finally:
            with self._thread.lock:
                if self._inboxes.pop(state, None) is not None:
                    self.scheduler.abort(state)

    def close(self) -> None:
        """Ends the thread after its step; requests that run get LoopClosed."""
        self._thread.close()

    def _step(self) -> None:
        try:
            outputs = self.scheduler.step()
        except Exception:
            log.exception("step=failed")
            with self._thread.lock:
                self.scheduler.clear()
                self._fail(StepFailed("a step of the model failed; see the log"))
        else:
            self._deliver(outputs)

    def _end(self) -> None:
        self._fail(LoopClosed("the batch-loop was closed"))

    def _has_work(self) -> bool:
        return bool(self.scheduler.num_waiting or self.scheduler.num_running)

    def _deliver(self, outputs: Iterable[tuple[RequestState, Output]]) -> None:
        with self._thread.lock:
            for state, output in outputs:
                inbox = self._inboxes.get(state)  # None: aborted during the step
                if inbox is not None:
                    inbox.put(output)
                if isinstance(output, Finished):
                    self._inboxes.pop(state, None)

    def _fail(self, error: Exception) -> None:
        for inbox in self._inboxes.values():
            inbox.put(error)
        self._inboxes.clear()
