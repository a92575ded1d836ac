"""The stages of a pipeline on Ray: workers are actors, and a scheduler in the driver hands them shards.

Only the plan of a shard (its name, where its source lies) travels to a worker; records go through storage, where they
are committed anyway. So a lost worker costs one shard of one stage and no more, the object store never fills, and both
runners give the same bytes because they run the same code.

Consecutive stages that need the same resources have the same workers, and a worker takes a shard through all of them.
Later stages go first, and no shard is started while `IN_FLIGHT` shards per worker are unfinished, so the work folder
holds a few shards per worker, whatever the size of the dataset. Workers start as CPUs become free; one is enough.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from pipelines.core.pipeline import EngineError, Resources, ShardPlan, StepError
from pipelines.core.stage_runner import Operator, ShardWork
from pipelines.core.storage import StorageError

log = logging.getLogger(__name__)

IN_FLIGHT = 2
POLL_S = 1.0
CLOSE_S = 10.0
NAMED = 5  # shards in an error
LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError)


@dataclass(frozen=True)
class RayRunner:
    """Stages on the connected cluster.

    Workers that fail are replaced and their shard is started over; an exception of a step ends the run.
    """

    max_worker_failures: int = 8
    """How often the worker of one shard may fail before the run ends: a shard that kills its worker every time (out
    of memory, a crash in a decoder) must not be retried for ever."""
    notice_s: float = 10.0
    """Seconds between two lines that say what is waited for while no worker can start."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in the order of completion."""
        if not ray.is_initialized():
            raise EngineError("Ray is not connected: call ray.init() before the run")
        schedule = _Schedule(self, _pools(operators), shards)
        try:
            yield from schedule.results()
        except RayError as error:
            raise _cause(error, schedule.left, self.max_worker_failures) from error
        finally:
            schedule.end()


@ray.remote
class _Worker:
    """A worker of one pool: opens its stages when they are first needed, and keeps them open."""

    def __init__(self, operators: Sequence[Operator], asks: Sequence[Sequence["_Ask"]]) -> None:
        self._operators, self._asks = operators, asks
        self._works: dict[int, ShardWork] = {}

    def ready(self) -> None:
        """Returns when the worker runs."""

    def run(self, shard: ShardPlan) -> int:
        """Take a shard through the stages; returns its records after the last."""
        num_records = 0
        for number in range(len(self._operators)):
            num_records = self._work(number)(shard)
        return num_records

    def close(self) -> None:
        """Release what the stages hold."""
        for work in self._works.values():
            work.close()

    def _work(self, number: int) -> ShardWork:
        if number not in self._works:
            self._works[number] = self._operators[number].open(*self._asks[number])
        return self._works[number]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Shared:
    """What the workers of a stage share."""

    def __init__(self, make: Any) -> None:
        self._answer = make()

    def ask(self, message: Any) -> Any:
        """The reply to a message."""
        return self._answer(message)


@dataclass(frozen=True)
class _Ask:
    """An `Ask` by way of the actor that holds what is shared."""

    shared: Any

    async def __call__(self, message: Any) -> Any:
        return await self.shared.ask.remote(message)


@dataclass
class _Pool:
    """Workers for consecutive stages, and the shards that wait for them."""

    operators: Sequence[Operator]
    resources: Resources
    waiting: deque[ShardPlan] = field(default_factory=deque)
    idle: list[Any] = field(default_factory=list)
    num_starting: int = 0
    num_running: int = 0
    asks: Sequence[Sequence[_Ask]] = ()
    shared: list[Any] = field(default_factory=list)
    started: list[Any] = field(default_factory=list)
    num_cpus: float = 0.0

    @property
    def label(self) -> str:
        """The names of its stages."""
        return " > ".join(o.name for o in self.operators)

    @property
    def num_ready(self) -> int:
        """Workers that have started."""
        return len(self.idle) + self.num_running

    def start(self) -> Any:
        """A new worker; it waits in Ray until what it needs is free."""
        needs = self.resources
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": needs.num_gpus}
        if needs.memory_bytes:
            options["memory"] = needs.memory_bytes
        self.num_starting += 1
        self.started.append(_Worker.options(**options).remote(self.operators, self.asks))
        return self.started[-1]

    def share(self) -> None:
        """Make what the workers share."""
        made = [[_Shared.remote(make) for make in o.shared] for o in self.operators]
        self.shared = [actor for actors in made for actor in actors]
        self.asks = [[_Ask(actor) for actor in actors] for actors in made]


def _pools(operators: Sequence[Operator]) -> list[_Pool]:
    """One pool for each run of stages with equal needs; CPUs are scaled down where not all pools would fit at once."""
    pools = [_Pool(list(some), needs) for needs, some in groupby(operators, lambda o: o.resources)]
    scale = _cpu_scale([p.resources.num_cpus for p in pools])
    for pool in pools:
        pool.num_cpus = pool.resources.num_cpus * scale
    return pools


def _cpu_scale(needs: Sequence[float]) -> float:
    """What to multiply CPUs by, so that one worker of each pool fits into what is free."""
    wanted, free = sum(needs), _free("CPU")
    if wanted <= free or len(needs) == 1:
        return 1.0
    total = ray.cluster_resources().get("CPU", 0.0)
    fits = free or (total if 0 < total < wanted else wanted)
    scale = min(1.0, fits / wanted)
    if scale < 1.0:
        log.warning("cpus_free=%g wanted=%g scale=%.3f", free, wanted, scale)
    return scale


def _free(resource: str) -> float:
    return ray.available_resources().get(resource, 0.0)


class _Schedule:
    """Which worker does which shard: the state of one run."""

    def __init__(
        self, runner: RayRunner, pools: Sequence[_Pool], shards: Sequence[ShardPlan]
    ) -> None:
        self._runner, self._pools = runner, pools
        self._unstarted = deque(shards)
        self._unfinished = dict.fromkeys(s.name for s in shards)
        self._starting: dict[Any, tuple[_Pool, Any]] = {}
        self._running: dict[Any, tuple[int, Any, ShardPlan]] = {}
        self._failures: Counter[str] = Counter()
        self._looked_at = 0.0
        self._waiting_since: float | None = None
        self._noticed_at = 0.0

    @property
    def left(self) -> list[str]:
        """The shards that are not done."""
        return list(self._unfinished)

    def results(self) -> Iterator[tuple[str, int]]:
        """Yield each shard when the last stage is done with it."""
        for pool in self._pools:
            pool.share()
        while self._unfinished:
            self._grow()
            self._assign()
            refs = [*self._running, *self._starting]
            done, _ = ray.wait(refs, timeout=POLL_S)
            if done:
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in done:
                if ref in self._starting:
                    self._started(ref)
                else:
                    yield from self._finished(ref)
            self._notice()

    def end(self) -> None:
        """Close idle workers and end all that were ever started: an exception keeps the one that raised it alive."""
        if not ray.is_initialized():
            return
        if not (self._starting or self._running) or not self._unfinished:
            closed = [worker.close.remote() for pool in self._pools for worker in pool.idle]
            ray.wait(closed, num_returns=len(closed), timeout=CLOSE_S)
        for pool in self._pools:
            for actor in [*pool.started, *pool.shared]:
                ray.kill(actor)

    def _grow(self) -> None:
        """Start further workers while shards are left for them, as many as are free, but at least one to wait."""
        now = time.monotonic()
        if now - self._looked_at < POLL_S and any(p.num_ready for p in self._pools):
            return
        self._looked_at = now
        for number, pool in enumerate(self._pools):
            left = len(pool.waiting) + pool.num_running + (0 if number else len(self._unstarted))
            most = min(left, pool.resources.concurrency or left)
            at_once = min(self._num_free(pool), max(2, pool.num_ready))
            while pool.num_ready + pool.num_starting < most and (
                pool.num_starting < max(1, at_once)
            ):
                worker = pool.start()
                self._starting[worker.ready.remote()] = (pool, worker)

    def _num_free(self, pool: _Pool) -> int:
        by_cpu = int(_free("CPU") / max(pool.num_cpus, 0.1))
        gpus = pool.resources.num_gpus
        return min(by_cpu, int(_free("GPU") / gpus)) if gpus else by_cpu

    def _assign(self) -> None:
        """Give shards to idle workers: later stages first, and new shards within the bound."""
        for pool in reversed(self._pools):
            while pool.idle and pool.waiting:
                self._submit(pool, pool.waiting.popleft())
        first = self._pools[0]
        bound = IN_FLIGHT * sum(p.num_ready for p in self._pools)
        while first.idle and self._unstarted and self._num_in_flight < bound:
            self._submit(first, self._unstarted.popleft())
        self._make_room()

    @property
    def _num_in_flight(self) -> int:
        return len(self._unfinished) - len(self._unstarted)

    def _submit(self, pool: _Pool, shard: ShardPlan) -> None:
        worker = pool.idle.pop()
        pool.num_running += 1
        ref = worker.run.remote(shard)
        self._running[ref] = (self._pools.index(pool), worker, shard)

    def _make_room(self) -> None:
        """End idle workers where shards wait for a pool that has none: they may hold what it needs."""
        if all(pool.num_ready for pool in self._pools if pool.waiting):
            return
        for pool in self._pools:
            if not pool.waiting:
                for worker in pool.idle:
                    ray.kill(worker)
                pool.idle.clear()

    def _started(self, ref: Any) -> None:
        pool, worker = self._starting.pop(ref)
        pool.num_starting -= 1
        try:
            ray.get(ref)
        except LOST as error:
            self._failed(f"a worker of {pool.label}", error)
            return
        pool.idle.append(worker)

    def _finished(self, ref: Any) -> Iterator[tuple[str, int]]:
        number, worker, shard = self._running.pop(ref)
        pool = self._pools[number]
        pool.num_running -= 1
        try:
            num_records: int = ray.get(ref)
        except LOST as error:
            self._failed(shard.name, error)
            pool.waiting.appendleft(shard)
            return
        pool.idle.append(worker)
        if number + 1 < len(self._pools):
            self._pools[number + 1].waiting.append(shard)
            return
        del self._unfinished[shard.name]
        yield shard.name, num_records

    def _failed(self, what: str, error: RayError) -> None:
        self._failures[what] += 1
        log.warning("lost=%r times=%d cause=%s", what, self._failures[what], type(error).__name__)
        is_hopeless = isinstance(error, RayActorError) and error.actor_init_failed
        if is_hopeless or self._failures[what] > self._runner.max_worker_failures:
            raise error

    def _notice(self) -> None:
        """Say what is waited for, where shards wait for workers that cannot start."""
        now = time.monotonic()
        stuck = [p for p in self._pools if not p.num_ready and p.num_starting]
        if not stuck or self._running:
            self._waiting_since = None
            return
        self._waiting_since = self._waiting_since or now
        if now - max(self._waiting_since, self._noticed_at) < self._runner.notice_s:
            return
        self._noticed_at = now
        _check_node()
        log.warning(
            "waiting for a worker of '%s' since %.0f s: it needs %s; %s",
            stuck[0].label,
            now - self._waiting_since,
            _needs(stuck[0]),
            free_resources(),
        )


def _check_node() -> None:
    """Raise `EngineError` if the node of the driver is dead: then nothing can start any more."""
    own = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == own):
        raise EngineError(
            "Ray's node on this machine was lost (its raylet has ended, perhaps for lack of memory); start the job "
            "again, it resumes where it stopped"
        )


def free_resources() -> str:
    """In words, how much of the cluster is free, for a person whose job waits."""
    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = [k for k in ("CPU", "GPU") if total.get(k)] or ["CPU"]
    found = ", ".join(f"{free.get(k, 0):g} of {total.get(k, 0):g} {k}s" for k in kinds)
    return (
        f"{found} of the cluster are free. The job continues when other work ends or nodes are added; if enough are "
        "free, the machine is busy and the worker's process is still starting"
    )


def _needs(pool: _Pool) -> str:
    needs = pool.resources
    found = [f"{pool.num_cpus:g} CPU"]
    found += [f"{needs.num_gpus:g} GPU"] if needs.num_gpus else []
    found += [f"{needs.memory_bytes:,} bytes of memory"] if needs.memory_bytes else []
    return " and ".join(found)


def _cause(error: BaseException, left: Sequence[str], max_worker_failures: int) -> BaseException:
    """The error that a step or the storage raised, unwrapped from Ray's; else Ray's own in words."""
    current: BaseException | None = error
    while current is not None:
        inner = getattr(current, "cause", None)
        for found in (inner, current):
            if type(found) in (StepError, StorageError):
                assert isinstance(found, BaseException)
                return found
        current = inner if isinstance(inner, BaseException) else current.__cause__
    some = ", ".join(left[:NAMED]) + (f" and {len(left) - NAMED} more" if len(left) > NAMED else "")
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, LOST):
        words = f"a worker failed more than {max_worker_failures} times, {words}"
    return EngineError(
        f"Ray gave up with {len(left)} shards not done ({some}): {words.strip()}\n"
        "Started again, the run resumes where it stopped. If workers fail on the same shard each time, look "
        "at its records, or give the stage more memory."
    )
