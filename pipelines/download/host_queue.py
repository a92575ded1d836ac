"""What holds requests back: a queue by host, and a budget of bytes.

- `HostQueue` hands out links by host, round robin. No host has more than `per_host` requests in flight or gets
  more than `rate` requests per second. A host that responds 429 or 503 is paused for all its links.
- `ByteBudget` bounds the bytes of all bodies that are in memory at once.

All methods belong to one event loop.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipelines.core.pipeline import Rejected
from pipelines.download.breaker import MAX_REMEMBERED, CircuitOpen, Pause, PausePolicy

T = TypeVar("T")


@dataclass
class _Host(Generic[T]):
    """What is queued for one host, what is in flight, and how it has behaved."""

    slots: int
    """Requests that may be in flight."""
    pending: deque[T] = field(default_factory=deque)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    """Requests outside the queue that wait for a free slot (redirects, retries)."""
    num_in_flight: int = 0
    not_before: float = 0.0
    """By the limit on requests per second."""
    pause: Pause = field(default_factory=lambda: Pause(0.0))
    num_overloads: int = 0
    """In a row."""
    overloaded_at: float = 0.0
    window: int | None = None
    """Requests at once since the last overload; null without one."""
    cost_s: float = 0.0
    is_ready: bool = False
    timer: asyncio.TimerHandle | None = None

    @property
    def num_wanted(self) -> int:
        """Slots that it could use now."""
        return len(self.pending) + len(self.waiting) + self.num_in_flight


class HostQueue(Generic[T]):
    """A queue of items, each for one host.

    Args:
        per_host: requests in flight to one host at most.
        rate: requests per second to one host at most; 0 sets no limit.
        policy: of pauses.
        is_leased: hosts begin without slots and get them by `set_slots`.
    """

    def __init__(
        self,
        per_host: int,
        rate: float,
        policy: PausePolicy = PausePolicy(),  # noqa: B008 (frozen)
        is_leased: bool = False,
    ) -> None:
        self.per_host = per_host
        self.policy = policy
        self.touched: set[str] = set()
        """Hosts whose demand may have changed; whoever leases slots empties it."""
        self.new_pauses: dict[str, Pause] = {}
        """Pauses since whoever leases slots last looked."""
        self.lacks_slots = asyncio.Event()
        """Set when a host without slots has something to request."""
        self._interval_s = 1.0 / rate if rate else 0.0
        self._is_leased = is_leased
        self._hosts: dict[str, _Host[T]] = {}
        self._ready: deque[str] = deque()
        self._num_pending = 0
        self._changed = asyncio.Event()

    def add(self, name: str, item: T) -> None:
        """Queues `item` for the host `name`."""
        host = self._host(name)
        host.pending.append(item)
        self._num_pending += 1
        self._wake(name)
        if not host.slots:
            self.lacks_slots.set()

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
        """Waits for a free slot of a host outside the queue (a redirect or a retry leads there)."""
        host = self._host(name)
        slot = asyncio.get_running_loop().create_future()
        host.waiting.append(slot)
        self._wake(name)
        if not host.slots:
            self.lacks_slots.set()
        try:
            await slot
        except asyncio.CancelledError:
            if slot in host.waiting:
                host.waiting.remove(slot)
            elif slot.done() and not slot.cancelled():
                self.leave(name)
            raise

    def leave(self, name: str, has_requested: bool = True) -> None:
        """Frees the slot of a request that is finished, or was not made: then it does not count for the rate."""
        host = self._hosts[name]
        assert host.num_in_flight > 0, name
        host.num_in_flight -= 1
        if not has_requested:
            host.not_before -= self._host_interval_s(host)
        self._wake(name)

    def check(self, name: str) -> None:
        """Nothing, if the host may be asked; raises `CircuitOpen` with its refusal while it is closed."""
        host = self._hosts.get(name)
        if host is not None and self._is_closed(host):
            refusal = host.pause.refusal
            assert refusal is not None
            raise CircuitOpen(refusal.reason, refusal.detail)

    def overloaded(
        self, name: str, started_at: float, asked_s: float | None, rejected: Rejected
    ) -> float:
        """Pauses a host that responded 429 or 503; returns the seconds, infinite if the host is closed now.

        Args:
            name: the host.
            started_at: when the request started (time of the loop). One from before the last overload was in
                flight together with it: it may prolong the pause, but counts no second time.
            asked_s: seconds of Retry-After; null where it is missing.
            rejected: what the links get that are not requested.
        """
        host, policy, now = self._host(name), self.policy, asyncio.get_running_loop().time()
        is_new = host.num_overloads == 0 or started_at >= host.overloaded_at
        if is_new:
            host.num_overloads += 1
            host.overloaded_at = now
        host.window = 1
        own_s = policy.first_s * 2.0 ** min(host.num_overloads - 1, 16)
        is_asked_enough = not is_new or (asked_s is not None and host.num_overloads == 1)
        wait_s = max(0.0 if is_asked_enough else own_s, asked_s or 0.0)
        host.cost_s += max(0.0, now + wait_s - max(now, host.pause.until))
        is_closed = wait_s >= policy.longest_s or host.num_overloads >= policy.max_in_row
        self._pause(name, wait_s, rejected if is_closed else None)
        self._check_budget(name, rejected)
        return float("inf") if self._is_closed(host) else wait_s

    def timed_out(self, name: str, seconds: float, rejected: Rejected) -> None:
        """Counts seconds that a link of a host took in vain."""
        self._host(name).cost_s += seconds / self.per_host
        self._check_budget(name, rejected)

    def succeeded(self, name: str) -> None:
        """Counts a response that is no overload."""
        host = self._host(name)
        host.num_overloads = 0
        if host.window is not None:
            host.window = host.window + 1 if host.window < self.per_host else None

    def set_pause(self, name: str, pause: Pause) -> None:
        """Pauses a host at least as long as `pause` says (another worker has met it)."""
        host = self._host(name)
        known = host.pause.refusal if self._is_closed(host) else None
        if pause.until > host.pause.until or (pause.refusal and not known):
            host.pause = Pause(max(pause.until, host.pause.until), pause.refusal or known)
            host.window = host.window or 1
            self._wake(name)

    def set_slots(self, name: str, slots: int) -> None:
        """Sets how many requests to a host may be in flight from now on."""
        host = self._hosts.get(name)
        if host is not None:
            host.slots = slots
            self._wake(name)

    def demand(self, name: str) -> tuple[int, int, int]:
        """Slots, requests in flight, and slots that could be used, of a host; zeros where nothing is known."""
        host = self._hosts.get(name)
        if host is None:
            return 0, 0, 0
        is_closed = self._is_closed(host)
        wanted = 0 if is_closed else min(self.per_host, host.num_wanted)
        return host.slots, host.num_in_flight, wanted

    def clear(self) -> None:
        """Drops what is queued, and forgets the hosts that are idle and have not been overloaded."""
        now = asyncio.get_running_loop().time()
        for host in self._hosts.values():
            host.pending.clear()
            host.cost_s = 0.0
            if host.timer:
                host.timer.cancel()
                host.timer = None
            host.is_ready = False
            host.slots = 0 if self._is_leased else self.per_host
        self._ready.clear()
        self._num_pending = 0
        kept = {
            name: host
            for name, host in self._hosts.items()
            if host.num_wanted or host.num_overloads or max(host.not_before, host.pause.until) > now
        }
        self._hosts = dict(list(kept.items())[-MAX_REMEMBERED:])

    def _host(self, name: str) -> _Host[T]:
        if name not in self._hosts:
            self._hosts[name] = _Host(0 if self._is_leased else self.per_host)
        return self._hosts[name]

    def _is_closed(self, host: _Host[T]) -> bool:
        is_over = asyncio.get_running_loop().time() >= host.pause.until
        return host.pause.refusal is not None and not is_over

    def _pause(self, name: str, seconds: float, refusal: Rejected | None) -> None:
        host = self._host(name)
        if refusal is not None:
            seconds = max(seconds, self.policy.closed_s)
        until = max(host.pause.until, asyncio.get_running_loop().time() + seconds)
        if refusal is None and self._is_closed(host):
            refusal = host.pause.refusal
        host.pause = Pause(until, refusal)
        if self._is_leased:
            self.new_pauses[name] = host.pause
        self._wake(name)

    def _check_budget(self, name: str, rejected: Rejected) -> None:
        if self._host(name).cost_s > self.policy.budget_s:
            self._pause(name, 0.0, rejected)

    def _wait_s(self, host: _Host[T]) -> float:
        """Seconds until the next request may start; infinite while no slot is free."""
        if self._is_closed(host):
            return 0.0
        window = self.per_host if host.window is None else host.window
        if host.num_in_flight >= min(host.slots, window):
            return float("inf")
        begins = max(host.not_before, host.pause.until)
        return max(0.0, begins - asyncio.get_running_loop().time())

    def _host_interval_s(self, host: _Host[T]) -> float:
        """Seconds between two requests: the share of the rate is that of the slots."""
        return self._interval_s * self.per_host / max(1, host.slots)

    def _start(self, host: _Host[T]) -> None:
        host.num_in_flight += 1
        if self._interval_s:
            now = asyncio.get_running_loop().time()
            host.not_before = max(now, host.not_before) + self._host_interval_s(host)

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
        if self._is_leased:
            self.touched.add(name)

    def _on_timer(self, name: str) -> None:
        host = self._hosts.get(name)
        if host is not None:
            host.timer = None
            self._wake(name)


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
