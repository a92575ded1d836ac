"""Ending a training on request: Ctrl-C, SIGTERM (the notice of a spot machine, of `ray job stop`, of a scheduler).

The first request lets the step in progress end; then every rank stops at the same step, a checkpoint is saved and
`Stopped` is raised. A second Ctrl-C ends at once, without saving.

Workers of other processes or machines hold a connection to the process that started them (`Starter`, `obey`): it tells
them to stop, and its end, also by `kill -9`, ends them at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

Address = tuple[str, int]
STOP, END = b"s", b"e"
CONNECT_S = 10.0
END_S = 60.0
"""Seconds that workers have for saving before others end them."""
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds and number of probes after which a machine that went silent counts as ended."""


class Stopped(RuntimeError):
    """A training that was asked to end and has saved what it had; `signal` is that of the request."""

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(step, signal)
        self.step, self.signal = step, signal

    def __str__(self) -> str:
        return f"asked to end by {signal.Signals(self.signal).name}; saved after step {self.step}"


class StopRequest:
    """Whether this process has been asked to end its training, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def is_made(self) -> bool:
        """True from the first request on."""
        return self.signal is not None

    def make(self, number: int = signal.SIGTERM) -> None:
        """Ask for the end; the first request counts."""
        if self.signal is None:
            self.signal = number
            level = logging.WARNING if multiprocessing.parent_process() is None else logging.DEBUG
            log.log(
                level, "stopping signal=%s: saving after this step", signal.Signals(number).name
            )

    @contextmanager
    def on_signals(self, and_then: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Make SIGINT and SIGTERM requests inside the block, and a second SIGINT a KeyboardInterrupt.

        `and_then` is called at the first. Only in the main thread, which alone may handle signals; an ignored SIGINT
        (a job in the background of a shell) stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if not self.is_made:
                self.make(number)
                and_then()
            elif number == signal.SIGINT:
                raise KeyboardInterrupt

        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Starter:
    """The process that starts workers on any machine; they connect to `address` with `obey`."""

    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0))
        self.address: Address = (host, self._listener.getsockname()[1])
        self._connections: list[socket.socket] = []
        self._is_stopping = False
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop_workers(self) -> None:
        """Ask all workers, also those that connect later, to save and end."""
        with self._changed:
            self._is_stopping = True
            self._stop_connected()

    def close(self) -> None:
        """End the workers that are still connected."""
        with self._changed:
            _end(self._listener)
            for connection in self._connections:
                _end(connection)

    def _stop_connected(self) -> None:
        for connection in self._connections:
            _send(connection, STOP)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            _notice_silence(connection)
            with self._changed:
                self._connections.append(connection)
                if self._is_stopping:
                    _send(connection, STOP)
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Wait for the end of a worker, or for a request to end them all."""
        received = _received(connection)
        with self._changed:
            if connection in self._connections:
                self._connections.remove(connection)
            self._changed.notify_all()
            if received == END:
                self._stop_connected()
                self._changed.wait_for(lambda: not self._connections, END_S)
        connection.close()


def end_workers(address: Address) -> None:
    """Ask the workers of a starter to save and end; returns when they have, at the latest after `END_S` seconds.

    For a process of another machine that is about to end them otherwise.
    """
    try:
        with socket.create_connection(address, CONNECT_S) as connection:
            _send(connection, END)
            connection.settimeout(END_S)
            while _received(connection):
                pass  # as a worker it is told to stop
    except OSError as error:
        log.warning("starter=%s:%d cannot be reached, nothing is saved: %s", *address, error)


@contextmanager
def obey(address: Address, stop: StopRequest) -> Iterator[None]:
    """Inside the block, pass on the starter's request to stop, and end this process when the starter has ended.

    Raises:
        ConnectionRefusedError: the starter has ended already.
    """
    try:
        connection = socket.create_connection(address, CONNECT_S)
    except ConnectionRefusedError as error:
        raise ConnectionRefusedError(
            f"the process that started this training, at {address[0]}:{address[1]}, has ended"
        ) from error
    except OSError as error:
        log.warning("starter=%s:%d cannot be reached, its end is not noticed: %s", *address, error)
        yield
        return
    connection.settimeout(None)
    _notice_silence(connection)
    is_over = threading.Event()
    threading.Thread(target=_listen, args=(connection, stop, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        _end(connection)


def _listen(connection: socket.socket, stop: StopRequest, is_over: threading.Event) -> None:
    while True:
        received = _received(connection)
        if is_over.is_set():
            return
        if received == STOP:
            stop.make()
        else:
            os._exit(1)


def _received(connection: socket.socket) -> bytes:
    """The next byte; none at the end of the other process."""
    try:
        return connection.recv(1)
    except OSError:  # reset, or no sign of life; or closed by this process
        return b""


def _end(connection: socket.socket) -> None:
    """Close a connection, so that the other side hears of it also while a thread of this process reads from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:  # the other side was first
        log.debug("connection was closed: %s", error)
    connection.close()


def _notice_silence(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: bytes) -> None:
    try:
        connection.sendall(message)
    except OSError as error:  # of a worker that has ended
        log.debug("worker has gone: %s", error)
