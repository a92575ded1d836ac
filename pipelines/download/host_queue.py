"""The circuit breaker: hosts that do not even take a connection are not tried again for a while.

Whose turn it is: hands out work by host, so that no host gets more than its share.

Hosts take turns (round robin), none has more than `per_host` requests in flight, each is asked at most
`rate` times a second, and a host that asked for patience is left alone meanwhile. All methods belong to
one event loop.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipelines.core.pipeline import Rejected

MAX_REMEMBERED = 65_536
"""Hosts with failures that are remembered; the one longest without news is forgotten first."""

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
"""Reasons that count against a host. A response, however bad, counts for it."""

Origin = tuple[str, int]


class HostIsDead(Rejected):
    """Nothing was tried, since the host is known not to answer; carries the reason that it died of."""


@dataclass
class _Record:
    num_failures: int = 0
    closed_until: float = 0.0
    last: Rejected | None = None


class DeadHosts:
    """Counts failed connections in a row for each host and port.

    A link that is not tried gets the reason and detail that its host died of, the same that it would
    have got by trying. So the ledger does not depend on which links happened to come first.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._records: OrderedDict[Origin, _Record] = OrderedDict()

    def check(self, origin: Origin) -> None:
        """Nothing, if `origin` may be tried. After the pause, one request at a time may try it.

        Raises:
            HostIsDead: with the reason of the last failure, if it is dead.
        """
        record = self._records.get(origin)
        if record is None or record.num_failures < self._failures:
            return
        now = self._clock()
        if now < record.closed_until:
            assert record.last is not None
            raise HostIsDead(record.last.reason, record.last.detail)
        record.closed_until = now + self._pause_s

    def failed(self, origin: Origin, rejected: Rejected) -> None:
        """No connection to `origin`, for this reason."""
        record = self._records.setdefault(origin, _Record())
        self._records.move_to_end(origin)
        record.num_failures += 1
        record.last = Rejected(rejected.reason, rejected.detail)
        if record.num_failures >= self._failures:
            record.closed_until = self._clock() + self._pause_s
        if len(self._records) > MAX_REMEMBERED:
            self._records.popitem(last=False)

    def answered(self, origin: Origin) -> None:
        """`origin` lives."""
        self._records.pop(origin, None)


T = TypeVar("T")


@dataclass
class _Lane(Generic[T]):
    """One host: what waits for it and what is on its way."""

    pending: deque[T] = field(default_factory=deque)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    num_in_flight: int = 0
    not_before: float = 0.0
    is_ready: bool = False
    timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return not (self.pending or self.waiting or self.num_in_flight)


class HostLanes(Generic[T]):
    """A queue of items, each for one host."""

    def __init__(self, per_host: int, rate: float) -> None:
        self._per_host = per_host
        self._interval = 1.0 / rate if rate else 0.0
        self._lanes: dict[str, _Lane[T]] = {}
        self._ready: deque[str] = deque()
        self._num_pending = 0
        self._changed = asyncio.Event()

    def add(self, host: str, item: T) -> None:
        """Queue `item` for `host`."""
        self._lane(host).pending.append(item)
        self._num_pending += 1
        self._wake(host)

    async def take(self) -> tuple[str, T] | None:
        """The next item and its host, which then has one more request in flight; None after the last."""
        while self._num_pending:
            while self._ready:
                host = self._ready.popleft()
                lane = self._lanes[host]
                lane.is_ready = False
                if lane.pending and self._wait_s(lane) == 0.0:
                    return host, self._start_pending(host, lane)
                self._wake(host)
            self._changed.clear()
            await self._changed.wait()
        return None

    async def enter(self, host: str) -> None:
        """Waits for a turn of `host` outside the queue (a redirect leads there)."""
        lane = self._lane(host)
        turn = asyncio.get_running_loop().create_future()
        lane.waiting.append(turn)
        self._wake(host)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in lane.waiting:
                lane.waiting.remove(turn)
            elif turn.done() and not turn.cancelled():
                self.leave(host)
            raise

    def leave(self, host: str) -> None:
        """One request to `host` is over."""
        lane = self._lanes[host]
        assert lane.num_in_flight > 0, host
        lane.num_in_flight -= 1
        self._wake(host)

    def pause(self, host: str, seconds: float) -> None:
        """No new request to `host` for `seconds`."""
        lane = self._lane(host)
        lane.not_before = max(lane.not_before, asyncio.get_running_loop().time() + seconds)

    def clear(self) -> None:
        """Forgets what is queued, and hosts of which there is nothing to remember."""
        now = asyncio.get_running_loop().time()
        for lane in self._lanes.values():
            lane.pending.clear()
            if lane.timer:
                lane.timer.cancel()
                lane.timer = None
            lane.is_ready = False
        self._ready.clear()
        self._num_pending = 0
        self._lanes = {
            host: lane
            for host, lane in self._lanes.items()
            if not lane.is_idle or lane.not_before > now
        }

    def _lane(self, host: str) -> _Lane[T]:
        return self._lanes.setdefault(host, _Lane())

    def _wait_s(self, lane: _Lane[T]) -> float:
        """Seconds until the host may be asked again; infinite while it is full."""
        if lane.num_in_flight >= self._per_host:
            return float("inf")
        return max(0.0, lane.not_before - asyncio.get_running_loop().time())

    def _start(self, lane: _Lane[T]) -> None:
        lane.num_in_flight += 1
        if self._interval:
            lane.not_before = asyncio.get_running_loop().time() + self._interval

    def _start_pending(self, host: str, lane: _Lane[T]) -> T:
        item = lane.pending.popleft()
        self._num_pending -= 1
        if not self._num_pending:
            self._changed.set()
        self._start(lane)
        self._wake(host)
        return item

    def _wake(self, host: str) -> None:
        """Lets the host's next one go, or sets the clock for it."""
        lane = self._lanes[host]
        while lane.waiting and self._wait_s(lane) == 0.0:
            turn = lane.waiting.popleft()
            if not turn.done():
                self._start(lane)
                turn.set_result(None)
        wait_s = self._wait_s(lane)
        if wait_s == 0.0 and lane.pending and not lane.is_ready:
            lane.is_ready = True
            self._ready.append(host)
            self._changed.set()
        elif 0.0 < wait_s < float("inf") and not lane.timer and (lane.pending or lane.waiting):
            lane.timer = asyncio.get_running_loop().call_later(wait_s, self._ring, host)

    def _ring(self, host: str) -> None:
        lane = self._lanes.get(host)
        if lane is not None:
            lane.timer = None
            self._wake(host)
