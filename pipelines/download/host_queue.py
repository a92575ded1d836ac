"""What holds requests back: a queue by host, a circuit breaker, and a budget of bytes.

- `HostQueue` hands out links by host, round robin. No host has more than `per_host` requests in flight or gets
  more than `rate` requests per second, and a host that asked to slow down is not asked meanwhile.
- `CircuitBreaker` stops requests to hosts that repeatedly refuse the connection.
- `ByteBudget` bounds the bytes of all bodies that are in memory at once.

All methods belong to one event loop.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipelines.core.pipeline import Rejected

T = TypeVar("T")


@dataclass
class _Host(Generic[T]):
    """What is queued for one host and what is in flight."""

    pending: deque[T] = field(default_factory=deque)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    """Requests outside the queue that wait for a free slot (redirects)."""
    num_in_flight: int = 0
    not_before: float = 0.0
    is_ready: bool = False
    timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return not (self.pending or self.waiting or self.num_in_flight)


class HostQueue(Generic[T]):
    """A queue of items, each for one host.

    Args:
        per_host: requests in flight to one host at most.
        rate: requests per second to one host at most; 0 sets no limit.
    """

    def __init__(self, per_host: int, rate: float) -> None:
        self._per_host = per_host
        self._interval_s = 1.0 / rate if rate else 0.0
        self._hosts: dict[str, _Host[T]] = {}
        self._ready: deque[str] = deque()
        self._num_pending = 0
        self._changed = asyncio.Event()

    def add(self, name: str, item: T) -> None:
        """Queues `item` for the host `name`."""
        self._host(name).pending.append(item)
        self._num_pending += 1
        self._wake(name)

    async def take(self) -> tuple[str, T] | None:
        """The next host and item; the host then has one more request in flight. None after the last item."""
        while self._num_pending:
            while self._ready:
                name = self._ready.popleft()
                host = self._hosts[name]
                host.is_ready = False
                if host.pending and self._wait_s(host) == 0.0:
                    return name, self._start_pending(name, host)
                self._wake(name)
            self._changed.clear()
            await self._changed.wait()
        return None

    async def enter(self, name: str) -> None:
        """Waits for a free slot of a host outside the queue (a redirect leads there)."""
        host = self._host(name)
        slot = asyncio.get_running_loop().create_future()
        host.waiting.append(slot)
        self._wake(name)
        try:
            await slot
        except asyncio.CancelledError:
            if slot in host.waiting:
                host.waiting.remove(slot)
            elif slot.done() and not slot.cancelled():
                self.leave(name)
            raise

    def leave(self, name: str) -> None:
        """Frees the slot of a request that is finished."""
        host = self._hosts[name]
        assert host.num_in_flight > 0, name
        host.num_in_flight -= 1
        self._wake(name)

    def pause(self, name: str, seconds: float) -> None:
        """Starts no request to a host for `seconds`."""
        host = self._host(name)
        host.not_before = max(host.not_before, asyncio.get_running_loop().time() + seconds)

    def clear(self) -> None:
        """Drops what is queued, and the hosts that are idle and not paused."""
        now = asyncio.get_running_loop().time()
        for host in self._hosts.values():
            host.pending.clear()
            if host.timer:
                host.timer.cancel()
                host.timer = None
            host.is_ready = False
        self._ready.clear()
        self._num_pending = 0
        self._hosts = {
            name: host
            for name, host in self._hosts.items()
            if not host.is_idle or host.not_before > now
        }

    def _host(self, name: str) -> _Host[T]:
        return self._hosts.setdefault(name, _Host())

    def _wait_s(self, host: _Host[T]) -> float:
        """Seconds until the next request may start; infinite while no slot is free."""
        if host.num_in_flight >= self._per_host:
            return float("inf")
        return max(0.0, host.not_before - asyncio.get_running_loop().time())

    def _start(self, host: _Host[T]) -> None:
        host.num_in_flight += 1
        if self._interval_s:
            host.not_before = asyncio.get_running_loop().time() + self._interval_s

    def _start_pending(self, name: str, host: _Host[T]) -> T:
        item = host.pending.popleft()
        self._num_pending -= 1
        if not self._num_pending:
            self._changed.set()
        self._start(host)
        self._wake(name)
        return item

    def _wake(self, name: str) -> None:
        """Starts what may start now, or sets a timer for it."""
        host = self._hosts[name]
        while host.waiting and self._wait_s(host) == 0.0:
            slot = host.waiting.popleft()
            if not slot.done():
                self._start(host)
                slot.set_result(None)
        wait_s = self._wait_s(host)
        if wait_s == 0.0 and host.pending and not host.is_ready:
            host.is_ready = True
            self._ready.append(name)
            self._changed.set()
        elif 0.0 < wait_s < float("inf") and not host.timer and (host.pending or host.waiting):
            host.timer = asyncio.get_running_loop().call_later(wait_s, self._on_timer, name)

    def _on_timer(self, name: str) -> None:
        host = self._hosts.get(name)
        if host is not None:
            host.timer = None
            self._wake(name)


MAX_REMEMBERED = 65_536
"""Hosts with failures that are remembered; the one whose last failure is oldest is forgotten first."""

NO_CONNECTION = frozenset(
    {
        "host_not_found",
        "dns_failed",
        "connect_refused",
        "connect_timeout",
        "connect_failed",
        "tls_untrusted",
        "tls_failed",
    }
)
"""Reasons that count as a failure of the host. Any response, however bad, resets the count."""

Origin = tuple[str, int]
"""Host and port."""


class CircuitOpen(Rejected):
    """No request was made, since the circuit of the host is open; carries the reason of its last failure."""


@dataclass
class _Circuit:
    num_failures: int = 0
    open_until: float = 0.0
    last: Rejected | None = None


class CircuitBreaker:
    """Counts failed connections in a row for each host and port, and stops requests after too many.

    A link that is not tried gets the reason and detail of the last failure, the same that it would have got
    by trying. So the ledger does not depend on the order in which links were tried.

    Args:
        failures: failed connections in a row that open the circuit.
        pause_s: seconds for which it stays open.
        clock: the time in seconds.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._circuits: OrderedDict[Origin, _Circuit] = OrderedDict()

    def check(self, origin: Origin) -> None:
        """Nothing, if `origin` may be tried. After the pause, one request at a time may try it.

        Raises:
            CircuitOpen: with the reason of the last failure.
        """
        circuit = self._circuits.get(origin)
        if circuit is None or circuit.num_failures < self._failures:
            return
        now = self._clock()
        if now < circuit.open_until:
            assert circuit.last is not None
            raise CircuitOpen(circuit.last.reason, circuit.last.detail)
        circuit.open_until = now + self._pause_s

    def failed(self, origin: Origin, rejected: Rejected) -> None:
        """Counts a failed connection to `origin`."""
        circuit = self._circuits.setdefault(origin, _Circuit())
        self._circuits.move_to_end(origin)
        circuit.num_failures += 1
        circuit.last = Rejected(rejected.reason, rejected.detail)
        if circuit.num_failures >= self._failures:
            circuit.open_until = self._clock() + self._pause_s
        if len(self._circuits) > MAX_REMEMBERED:
            self._circuits.popitem(last=False)

    def succeeded(self, origin: Origin) -> None:
        """Closes the circuit of `origin`: it has sent a response."""
        self._circuits.pop(origin, None)


class ByteBudget:
    """Bytes that may be in memory at once, granted in the order of the requests for them."""

    def __init__(self, num_bytes: int) -> None:
        self._free = num_bytes
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, num_bytes: int) -> bool:
        """Takes `num_bytes` and returns True, if they are free and nobody waits."""
        if self._queue or num_bytes > self._free:
            return False
        self._free -= num_bytes
        return True

    async def take(self, num_bytes: int) -> None:
        """Waits until `num_bytes` are free, and takes them."""
        if self.take_now(num_bytes):
            return
        grant = asyncio.get_running_loop().create_future()
        entry = (num_bytes, grant)
        self._queue.append(entry)
        try:
            await grant
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
                self.give(0)
            elif not grant.cancelled():
                self.give(num_bytes)
            raise

    def give(self, num_bytes: int) -> None:
        """Returns `num_bytes` to the budget."""
        self._free += num_bytes
        while self._queue and self._queue[0][0] <= self._free:
            num_bytes, grant = self._queue.popleft()
            if not grant.done():
                self._free -= num_bytes
                grant.set_result(None)


class Lease:
    """The bytes of a budget that one link holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = 0

    def grow_now(self, num_bytes: int) -> bool:
        """True if the lease now holds `num_bytes`, without waiting. It never holds two bodies."""
        self.release()
        taken = self._budget.take_now(num_bytes)
        self._held = num_bytes if taken else 0
        return taken

    async def grow(self, num_bytes: int) -> None:
        """Waits until the lease holds `num_bytes`."""
        self.release()
        await self._budget.take(num_bytes)
        self._held = num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Returns all but `num_bytes`."""
        if num_bytes < self._held:
            self._budget.give(self._held - num_bytes)
            self._held = num_bytes

    def release(self) -> None:
        """Returns everything."""
        self.shrink(0)
