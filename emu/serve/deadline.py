"""A time limit around many short waits."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """Ends what its `with` block waits for when the time is over, with TimeoutError; one timer for many blocks.

    Made in the task that enters them. As `asyncio.timeout_at`, it ends no block that need not wait.
    """

    def __init__(self, when: float) -> None:
        """`when` is on the clock of the event loop."""
        task = asyncio.current_task()
        assert task is not None
        self._task, self._num_cancelled = task, task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle = self._loop.call_at(when, self._expire)
        self._is_inside = self._is_over = self._has_cancelled = False

    def __enter__(self) -> None:
        self._is_inside = True
        if self._is_over:
            self._timer = self._loop.call_soon(self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_inside = False
        if self._is_over:
            self._timer.cancel()
        if self._has_cancelled:
            self._has_cancelled = False
            num_cancelled = self._task.uncancel()
            if num_cancelled <= self._num_cancelled and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _expire(self) -> None:
        self._is_over = True
        if self._is_inside:
            self._has_cancelled = True
            self._task.cancel()

    def close(self) -> None:
        """Ends the timer."""
        self._timer.cancel()
