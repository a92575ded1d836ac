"""A thread that makes one step after the other while there is work, which other threads add."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LoopClosed(RuntimeError):
    """Work for a thread that has ended, or that ended before the work was done."""


class StepThread:
    """Runs `step` in a thread of its own as long as `has_work()`, and `end` when it is closed.

    `has_work` and `end` are called under `lock`, `step` is not. `step` must handle its errors itself.
    """

    def __init__(
        self,
        name: str,
        has_work: Callable[[], bool],
        step: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self.lock = threading.Condition()
        self._has_work, self._step, self._end = has_work, step, end
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread; call it once, when everything that the functions use is there."""
        self._thread.start()

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Within it work is added, under the lock; raises LoopClosed after `close`."""
        with self.lock:
            if self._is_closed:
                raise LoopClosed(f"the {self._thread.name} is closed")
            yield
            self.lock.notify()

    def close(self) -> None:
        """Ends the thread after its step."""
        with self.lock:
            self._is_closed = True
            self.lock.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self._is_closed or self._has_work())
                if self._is_closed:
                    self._end()
                    return
            self._step()
