"""What a job is doing: a line when that changes, and at least every ten seconds.

Long work has a progress bar. What comes before and between bars (imports, reading weights, the start of Ray) says so
with `say`. A bar that has not moved for ten seconds is printed again, so that a log shows that the job is alive.
"""

import math
import sys
import time
from contextvars import ContextVar
from threading import Event, Thread
from typing import Any, Self, TextIO

INTERVAL_S, FIRST_S = 10.0, 2.0
POLL_S = 0.5


def say(text: str) -> None:
    """Say what the running job does from now on; without a running job nothing happens.

    An empty text is silence, for a job that runs others which say it.
    """
    status = _running.get()
    if status is not None:
        status.say(text)


def say_importing(package: str) -> None:
    """Say that a large package is imported, unless it is already: an import may hold up all threads."""
    if package not in sys.modules:
        say(f"importing {package}")


class Status:
    """Writes lines such as `[  12 s] starting Ray` while its block runs; a job of two seconds stays silent."""

    def __init__(
        self,
        text: str,
        stream: TextIO | None = None,
        interval_s: float = INTERVAL_S,
        first_s: float = FIRST_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._text, self._stream = text, stream
        self._interval_s, self._poll_s = interval_s, poll_s
        self._began = time.monotonic()
        self._due = self._began + first_s
        self._stop = Event()
        self._thread = Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Self:
        self._token = _running.set(self)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        _running.reset(self._token)
        self._stop.set()
        self._thread.join()

    def say(self, text: str) -> None:
        """Write what the job does from now on."""
        self._text = text
        self._write()

    def _repeat(self) -> None:
        while not self._stop.wait(self._poll_s):
            bars = _bars()
            for bar in bars:
                # a bar is known before it is complete
                if time.time() - getattr(bar, "last_print_t", math.inf) >= self._interval_s:
                    bar.refresh()
                    bar.last_print_t = time.time()
            if bars:
                self._due = time.monotonic() + self._interval_s
            elif time.monotonic() >= self._due:
                self._write()

    def _write(self) -> None:
        now = time.monotonic()
        self._due = now + self._interval_s
        if not self._text:
            return
        line = f"[{now - self._began:4.0f} s] {self._text}"
        print(line, file=self._stream or sys.stderr, flush=True)


_running: ContextVar[Status | None] = ContextVar("running", default=None)


def _bars() -> list[Any]:
    """The progress bars that are shown; none while tqdm is not imported, or not to its end."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if tqdm is None:
        return []
    with tqdm.get_lock():
        return [bar for bar in getattr(tqdm, "_instances", ()) if not bar.disable]
