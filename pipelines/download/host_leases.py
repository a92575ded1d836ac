"""Limits per host over all workers of a cluster: each worker leases slots from one table.

`LeaseTable` is the table: a plain object that the runner keeps in one place (on Ray an actor without a CPU).
`LeaseClient` keeps the slots of one worker's `HostQueue` in step with it: a message when a host is first needed, and
one every `EXCHANGE_S` while links are left. A message names only the hosts whose demand has changed.

For each host, the slots that workers hold together never exceed `per_host`. n workers that want a host get
`per_host // n` slots each; beyond `per_host` workers the first ones get one slot, and pass it on after `TERM_S`. A
worker that loses slots finishes the requests in flight first; until it has said so, nobody else gets them. The rate is
divided as the slots are. Pauses of hosts travel with the messages, so a host that responded 429 to one worker is
paused for all.

The table is soft state: after a loss it is told everything again. A worker that is silent for `LOST_S` loses its
slots, and one that gets no reply for `STALE_S` starts no requests.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.pipeline import Ask, Rejected
from pipelines.download.breaker import MAX_REMEMBERED, Pause
from pipelines.download.host_queue import HostQueue

EXCHANGE_S = 0.5
COALESCE_S = 0.01
"""Waits for further demands that arrive together."""
TERM_S = 5.0
STALE_S = 8.0
LOST_S = 10.0


@dataclass(frozen=True)
class Report:
    """What a worker tells the table."""

    worker: str
    is_full: bool
    """Everything is told, not only what has changed."""
    demands: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """By host: slots held, requests in flight, slots wanted."""
    pauses: Mapping[str, tuple[float, Rejected | None]] = field(default_factory=dict)
    """By host: seconds from now, and the refusal of a closed host."""


@dataclass(frozen=True)
class Reply:
    """What the table tells a worker."""

    is_known: bool = True
    """False where the table needs a full report."""
    slots: Mapping[str, int] = field(default_factory=dict)
    pauses: Mapping[str, tuple[float, Rejected | None]] = field(default_factory=dict)


@dataclass
class _Claim:
    """What one worker wants of one host, and what it may have in flight for all that the table knows."""

    wanted: int = 0
    granted: int = 0
    committed: int = 0
    since: float = 0.0


@dataclass
class _Host:
    claims: OrderedDict[str, _Claim] = field(default_factory=OrderedDict)
    pause: Pause = field(default_factory=lambda: Pause(0.0))


@dataclass
class _Worker:
    seen_at: float
    hosts: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    """Hosts of which it has to be told something."""


class LeaseTable:
    """Slots of every host over all workers; called with a `Report`, it returns a `Reply`.

    Args:
        per_host: requests in flight to one host at most, of all workers together.
        clock: the time in seconds.
    """

    def __init__(self, per_host: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_host = per_host
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._workers: dict[str, _Worker] = {}

    def __call__(self, report: Report) -> Reply:
        """Take what a worker reports, and say what it may do."""
        now = self._clock()
        for name in [n for n, w in self._workers.items() if now - w.seen_at > LOST_S]:
            self._forget(name)
        if report.worker not in self._workers and not report.is_full:
            return Reply(is_known=False)
        worker = self._workers.setdefault(report.worker, _Worker(now))
        worker.seen_at = now
        for name, (seconds, refusal) in report.pauses.items():
            self._pause(name, Pause(now + seconds, refusal), report.worker)
        for name, demand in report.demands.items():
            self._claim(name, report.worker, demand, now)
        named = {*report.demands, *worker.changed, *self._overdue(report.worker, now)}
        worker.changed = set()
        slots = {n: self._grant(n, report.worker, now) for n in sorted(named & worker.hosts)}
        paused = {n: self._hosts[n].pause for n in named & set(self._hosts)}
        pauses = {n: (p.until - now, p.refusal) for n, p in paused.items() if p.until > now}
        return Reply(slots=slots, pauses=pauses)

    def _claim(self, name: str, worker: str, demand: tuple[int, int, int], now: float) -> None:
        slots, in_flight, wanted = demand
        host = self._host(name)
        claim = host.claims.setdefault(worker, _Claim(since=now))
        was = (min(claim.wanted, 1), claim.committed)
        claim.wanted, claim.granted, claim.committed = wanted, slots, max(slots, in_flight)
        self._workers[worker].hosts.add(name)
        if not wanted and not claim.committed:
            self._drop(name, worker)
        if (min(wanted, 1), claim.committed) != was:
            self._tell_others(name, worker)

    def _grant(self, name: str, worker: str, now: float) -> int:
        """The slots that a worker has from now on."""
        host = self._hosts[name]
        claim = host.claims[worker]
        wanting = [w for w, c in host.claims.items() if c.wanted]
        if claim.granted and len(wanting) > self._per_host and now - claim.since > TERM_S:
            host.claims.move_to_end(worker)
            wanting.remove(worker)
            wanting.append(worker)
            self._tell_others(name, worker)
        target = 0
        if worker in wanting[: self._per_host]:
            target = min(claim.wanted, max(1, self._per_host // len(wanting)))
        others = sum(c.committed for w, c in host.claims.items() if w != worker)
        slots = max(0, min(target, self._per_host - others))
        if slots and not claim.granted:
            claim.since = now
        claim.granted, claim.committed = slots, max(claim.committed, slots)
        return slots

    def _overdue(self, worker: str, now: float) -> list[str]:
        """Hosts whose slot a worker has to pass on."""
        claims = [(n, self._hosts[n].claims) for n in self._workers[worker].hosts]
        crowded = [(n, c[worker]) for n, c in claims if len(c) > self._per_host]
        return [n for n, claim in crowded if claim.granted and now - claim.since > TERM_S]

    def _pause(self, name: str, pause: Pause, worker: str) -> None:
        host = self._host(name)
        if pause.until > host.pause.until:
            host.pause = pause
            self._tell_others(name, worker)

    def _tell_others(self, name: str, worker: str) -> None:
        for other in self._hosts[name].claims if name in self._hosts else ():
            if other != worker:
                self._workers[other].changed.add(name)

    def _host(self, name: str) -> _Host:
        if len(self._hosts) > MAX_REMEMBERED:
            now = self._clock()
            idle = [n for n, h in self._hosts.items() if not h.claims and h.pause.until <= now]
            for old in idle:
                del self._hosts[old]
        return self._hosts.setdefault(name, _Host())

    def _drop(self, name: str, worker: str) -> None:
        host = self._hosts[name]
        del host.claims[worker]
        self._workers[worker].hosts.discard(name)
        if not host.claims and host.pause.until <= self._clock():
            del self._hosts[name]

    def _forget(self, worker: str) -> None:
        for name in list(self._workers[worker].hosts):
            self._tell_others(name, worker)
            self._drop(name, worker)
        del self._workers[worker]


class LeaseClient:
    """Keeps the slots of one queue in step with the table; belongs to the queue's event loop.

    Args:
        queue: made with `is_leased`.
        ask: sends a `Report` to the table and returns its `Reply`.
    """

    def __init__(self, queue: HostQueue[Any], ask: Ask) -> None:
        self._queue = queue
        self._ask = ask
        self._worker = uuid.uuid4().hex
        self._sent: dict[str, tuple[int, int, int]] = {}
        self._is_known = False

    async def keep(self) -> None:
        """Exchange messages until cancelled."""
        while True:
            if self._queue.lacks_slots.is_set():
                await asyncio.sleep(COALESCE_S)
            self._queue.lacks_slots.clear()
            await self._exchange()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._queue.lacks_slots.wait(), EXCHANGE_S)

    async def release(self) -> None:
        """Give everything back."""
        if self._is_known:
            nothing = dict.fromkeys(self._sent, (0, 0, 0))
            self._sent = {}
            await self._ask(Report(self._worker, True, nothing, self._new_pauses()))

    async def _exchange(self) -> None:
        pauses = dict(self._queue.new_pauses)
        report = self._report()
        asked = asyncio.ensure_future(self._ask(report))
        done, _ = await asyncio.wait({asked}, timeout=STALE_S)
        if not done:
            for name in self._sent:
                self._queue.set_slots(name, 0)
        reply: Reply = await asked
        self._is_known = reply.is_known
        now = asyncio.get_running_loop().time()
        for name, (seconds, refusal) in reply.pauses.items():
            self._queue.set_pause(name, Pause(now + seconds, refusal))
        for name, slots in reply.slots.items():
            self._queue.set_slots(name, slots)
        if not reply.is_known:
            self._queue.new_pauses |= pauses
            self._queue.lacks_slots.set()  # at once, in full

    def _report(self) -> Report:
        if not self._is_known:
            self._queue.touched |= set(self._sent)
            self._sent = {}
        is_full = not self._is_known
        touched, self._queue.touched = self._queue.touched, set()
        demands = {}
        for name in touched:
            if self._queue.demand(name)[2] == 0:
                self._queue.set_slots(name, 0)  # what is not wanted is given back
            demand = self._queue.demand(name)
            if demand != self._sent.get(name, (0, 0, 0)):
                demands[name] = demand
                self._sent[name] = demand
            if demand == (0, 0, 0):
                self._sent.pop(name, None)
        self._queue.touched -= touched  # setting slots touched them again
        return Report(self._worker, is_full, demands, self._new_pauses())

    def _new_pauses(self) -> dict[str, tuple[float, Rejected | None]]:
        pauses, self._queue.new_pauses = self._queue.new_pauses, {}
        now = asyncio.get_running_loop().time()
        return {n: (p.until - now, p.refusal) for n, p in pauses.items()}
