"""The stages of a pipeline on Ray Data: one block is one shard's name, one operator is one stage.

Only the plan of a shard (its name, where its source lies) travels between workers; records go through
storage, where they are committed anyway. So a lost worker costs one shard of one stage and no more, the
object store never fills, and both runners give the same bytes because they run the same code.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from pipelines.core.pipeline import EngineError, ShardPlan, StepError
from pipelines.core.stage_runner import Operator, ShardWork
from pipelines.core.storage import StorageError
from pipelines.core.workspace import shard_from_dict, shard_to_dict

log = logging.getLogger(__name__)

Row = dict[str, Any]
NAMED = 5  # shards in an error


@dataclass(frozen=True)
class RayRunner:
    """Stages as operators of Ray Data on the connected cluster.

    Stages that construct their transforms are pools of actors, the others tasks. Workers that fail are
    replaced and their shard is started over; an exception of a step ends the run.
    """

    max_worker_failures: int = 8
    """How often one actor of a stage, or the task of one shard, may fail before the run ends: a shard that
    kills its worker every time (out of memory, a crash in a decoder) must not be retried for ever."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in the order of completion."""
        if not ray.is_initialized():
            raise EngineError("Ray is not connected: call ray.init() before the run")
        rows = [{"shard": json.dumps(shard_to_dict(s)), "num_records": 0} for s in shards]
        dataset = _from_items(rows)
        scale = _cpu_scale(operators, ray.cluster_resources().get("CPU", 1.0))
        for operator in operators:
            dataset = self._mapped(dataset, operator, scale)
        left = dict.fromkeys(shard.name for shard in shards)
        try:
            for row in dataset.iter_rows():
                name = json.loads(row["shard"])["name"]
                del left[name]
                yield name, row["num_records"]
        except Exception as error:
            raise _cause(error, list(left), self.max_worker_failures) from error

    def _mapped(self, dataset: Dataset, operator: Operator, scale: float) -> Dataset:
        needs = operator.resources
        options: dict[str, Any] = {"num_cpus": needs.num_cpus * scale}
        failures = self.max_worker_failures
        if needs.num_gpus:
            options["num_gpus"] = needs.num_gpus
        if needs.memory_bytes:
            options["memory"] = needs.memory_bytes
        if operator.is_stateful:
            pool = ActorPoolStrategy(min_size=1, max_size=needs.concurrency)
            actor: Any = _ShardActor
            options |= {"max_restarts": failures, "max_task_retries": failures}
            with _unnamed_options_allowed():
                return dataset.map(actor, fn_constructor_args=(operator,), compute=pool, **options)
        options["max_retries"] = failures
        with _unnamed_options_allowed():
            return dataset.map(_shard_task(operator), concurrency=needs.concurrency, **options)


@contextmanager
def _unnamed_options_allowed() -> Iterator[None]:
    """Ray (until 2.63) warns of options without a parameter of their own, but has no other bound on failures."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        yield


class _ShardActor:
    """An operator kept on an actor of Ray Data.

    It is opened with the first shard: an exception is then handled as that of a step, while one in the
    constructor of the actor would be retried and be reported as a failure of the actor.
    """

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._work: ShardWork | None = None

    def __call__(self, row: Row) -> Row:
        self._work = self._work or self._operator.open()
        return _done(row, self._work)

    def __del__(self) -> None:
        # Ray Data deletes the object when the pool ends; there is no other call at the end.
        if self._work is not None:
            self._work.close()


def _shard_task(operator: Operator) -> Callable[[Row], Row]:
    def run_shard(row: Row) -> Row:
        with closing(operator.open()) as work:
            return _done(row, work)

    run_shard.__name__ = operator.name
    return run_shard


def _done(row: Row, work: ShardWork) -> Row:
    num_records = work(shard_from_dict(json.loads(row["shard"])))
    return {"shard": row["shard"], "num_records": num_records}


def _from_items(rows: Sequence[Row]) -> Dataset:
    context = DataContext.get_current().copy()
    # The bar of the engine counts shards; Ray's own bars would write over it.
    context.enable_progress_bars = False
    # It warns that it has none, once a run.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    # A shard of slow downloads may take longer than any bound; links have their own deadlines.
    context.execution_no_progress_timeout_s = -1
    with DataContext.current(context):
        return ray.data.from_items(list(rows), override_num_blocks=len(rows))


def _cpu_scale(operators: Sequence[Operator], num_cpus: float) -> float:
    """What to multiply each stage's CPUs by, so that one worker of each fits on the cluster at once.

    Pools of actors hold their CPUs for the whole run; on a machine with fewer cores than stages the
    later ones would never start.
    """
    held = sum(o.resources.num_cpus for o in operators if o.is_stateful)
    passing = max((o.resources.num_cpus for o in operators if not o.is_stateful), default=0.0)
    if held + passing <= num_cpus:
        return 1.0
    scale = num_cpus / (held + passing)
    log.warning("cpus=%g wanted=%g scale=%.3f", num_cpus, held + passing, scale)
    return scale


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
    if isinstance(error, RayActorError | WorkerCrashedError | OutOfMemoryError):
        words = f"a worker failed more than {max_worker_failures} times, {words}"
    return EngineError(
        f"Ray gave up with {len(left)} shards not done ({some}): {words.strip()}\n"
        "Started again, the run resumes where it stopped. If workers fail on the same shard each time, look "
        "at its records, or give the stage more memory."
    )
