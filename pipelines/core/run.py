"""Run a pipeline: from a folder in any state to a finished dataset, doing only what is missing.

The shards pass the stages on a runner, segment by segment; then the published files are checked, the hooks of the
pipeline run, and the manifest is written last.
"""

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Event, Thread

import pyarrow as pa
from tqdm import tqdm

from pipelines.core.contracts import ErrorContext, alarms
from pipelines.core.folder import exclusive, finished_manifest, refusing_unusable
from pipelines.core.inputs import planned
from pipelines.core.pipeline import (
    SHARD_KEY,
    AlarmError,
    Barrier,
    EngineError,
    Extension,
    Pipeline,
    ShardPlan,
)
from pipelines.core.publishing import operators
from pipelines.core.resume import RunRequest, decide
from pipelines.core.stage_runner import (
    ExtensionWork,
    LocalRunner,
    Operator,
    Runner,
    load_input,
)
from pipelines.core.storage import Storage
from pipelines.core.validate import check_dataset
from pipelines.core.workspace import PLAN_FILE, BuildPlan, Workspace, check_pipeline
from schemas.manifest import MANIFEST_FILE, Manifest
from schemas.validation import SchemaError

log = logging.getLogger(__name__)

FOLLOW_S = 10.0
"""Seconds between looks at how far shards have come, while none is finished."""


def run(
    pipeline: Pipeline,
    out: str,
    runner: Runner | None = None,
    *,
    redo: Callable[[pa.Table], bool] | None = None,
    overwrite: bool = False,
    fail_on_alarm: bool = False,
    progress: bool = True,
) -> Manifest:
    """Build the dataset of a pipeline in `out`, or resume the build that an earlier run started there.

    A finished dataset with an equal fingerprint is left as it is.

    Args:
        pipeline: what to build.
        out: folder or address of the dataset.
        runner: where the shards are worked on; by default this process.
        redo: true for the published ledger of each shard of a finished dataset that is to be made again. Until all of
            them are made, transforms can read the published files.
        overwrite: start over where the folder holds a finished dataset, or a build of another fingerprint; an
            unfinished build of the same fingerprint is resumed.
        fail_on_alarm: raise on an alarm, and write no manifest.
        progress: show a progress bar.

    Raises:
        StepError: a step raised or broke a rule; the message names stage, step and shard.
        LedgerError: records or links do not add up; no manifest is written.
        RefusedError: the folder does not allow what is asked for; `FingerprintError` where it holds a dataset of
            other inputs, configuration or code.
        LockedError: another run works on `out`.
        AlarmError: something dropped more than its bound, with `fail_on_alarm`.
        StorageError: a file cannot be written (disk full, no permission).
    """
    check_pipeline(pipeline)
    storage = Storage(out)
    runner = runner or LocalRunner()

    def follow(
        results: Iterator[tuple[str, int]],
        label: str,
        sizes: Mapping[str, int],
        pending: Sequence[str],
    ) -> None:
        for name in with_progress(results, label, sizes, pending, progress, unit="input"):
            log.debug("inputs=%s status=done", name)

    plan = partial(planned, pipeline.source, pipeline.dataset, storage, runner, follow)
    request = RunRequest(pipeline, storage, redo, overwrite, plan)
    with refusing_unusable():
        found = request.finished_manifest()
    if found is None:
        with exclusive(storage):
            found = decide(request)
            if isinstance(found, BuildPlan):
                build = _Build(pipeline, storage, runner, found, progress)
                return build.finish(fail_on_alarm)
    if found.alarms and fail_on_alarm:
        raise AlarmError("; ".join(found.alarms))
    return found


def extend(
    extension: Extension, out: str, runner: Runner | None = None, *, progress: bool = True
) -> tuple[Manifest, int]:
    """Add what a stage makes to every shard of a finished dataset, doing only what is missing.

    Returns the manifest, which then names it, and the number of shards that were done now.

    Raises:
        RefusedError: `out` holds no finished dataset.
        EngineError: the runner ended before all shards were done.
        StepError: the stage failed on a shard; the message names it.
        LockedError: another run works on `out`.
        StorageError: a file cannot be written (disk full, no permission).
    """
    storage = Storage(out)
    manifest = finished_manifest(storage)
    with exclusive(storage):
        admitted = extension.admit(manifest, storage.root)
        if admitted != manifest:
            storage.commit(MANIFEST_FILE, admitted.to_json().encode())
        pending = [e for e in admitted.shards if not extension.is_done(storage, e)]
        plans = [ShardPlan(e.name, e.num_samples, (e.as_dict(),)) for e in pending]
        open_work = partial(ExtensionWork, extension, storage)
        operator = Operator(extension.name, extension.resources, open_work)
        results = (runner or LocalRunner()).run([operator], plans) if plans else iter(())
        shards = {e.name: e.num_samples for e in admitted.shards}
        left = [e.name for e in pending]
        for name in with_progress(results, extension.name, shards, left, progress):
            log.debug("shard=%s stages=%r status=done", name, extension.name)
        lost = [e.name for e in pending if not extension.is_done(storage, e)]
        if lost:
            raise EngineError(f"the runner ended without shards {lost[:5]} ({len(lost)} in all)")
        completed = extension.complete(admitted)
        if completed != admitted:
            storage.commit(MANIFEST_FILE, completed.to_json().encode())
    return completed, len(plans)


@dataclass(frozen=True)
class _Build:
    """A build that has its plan."""

    pipeline: Pipeline
    storage: Storage
    runner: Runner
    plan: BuildPlan
    progress: bool

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.storage, tuple(s.name for s in self.pipeline.stages))

    def finish(self, fail_on_alarm: bool) -> Manifest:
        for first, last in self._segments():
            self._run_segment(first, last)
        manifest = self._checked()
        for alarm in manifest.alarms:
            log.error("alarm=%r out=%s", alarm, self.storage.root)
        if manifest.alarms and fail_on_alarm:
            raise AlarmError("; ".join(manifest.alarms))
        for hook in self.pipeline.finish:
            with ErrorContext(
                "finish", "(all)", getattr(hook, "__name__", type(hook).__name__)
            ).explained():
                hook(self.storage, manifest, self.pipeline.reasons)
        self.storage.commit(MANIFEST_FILE, manifest.to_json().encode())
        self.storage.delete(PLAN_FILE)
        self.workspace.clear()
        return manifest

    def _segments(self) -> Iterator[tuple[int, int]]:
        """First and last level of the stages that a shard passes without waiting for the others.

        All shards wait before a barrier, and before publishing over files that transforms still read.
        """
        starts = {1}
        starts |= {n for n, s in enumerate(self.pipeline.stages, 1) if isinstance(s, Barrier)}
        if self.plan.redo is not None:
            starts.add(self.workspace.last_level)
        ordered = sorted(starts)
        stops = [n - 1 for n in ordered[1:]] + [self.workspace.last_level]
        return zip(ordered, stops, strict=True)

    def _run_segment(self, first: int, last: int) -> None:
        levels = self.workspace.survey()
        active = self.plan.active
        pending = [s for s in active if levels.get(s.name, 0) < last]
        if not pending:
            return
        self._plan_barrier(first)
        if self.plan.redo is not None and first == self.workspace.last_level:
            # From here on published files change: the dataset is not whole until the end.
            self.storage.delete(MANIFEST_FILE)
        chosen = operators(self.pipeline, self.workspace, first, last)
        label = " > ".join(o.name for o in chosen)
        results = self.runner.run(chosen, pending)
        shards = _sizes(active)
        left = [s.name for s in pending]
        reached = partial(self._reached, first, [o.name for o in chosen], shards)
        for name in with_progress(results, label, shards, left, self.progress, reached):
            log.debug("shard=%s stages=%r status=done", name, label)
        reached = self.workspace.survey()
        lost = [s.name for s in pending if reached.get(s.name, 0) < last]
        if lost:
            raise EngineError(f"the runner ended without shards {lost[:5]} ({len(lost)} in all)")

    def _reached(self, first: int, names: Sequence[str], shards: Mapping[str, int]) -> str:
        """How many records have passed each stage but the last, such as `parse 2,000, fetch 1,000`."""
        levels = self.workspace.survey()
        passed = {
            name: sum(n for shard, n in shards.items() if levels.get(shard, 0) >= level)
            for level, name in enumerate(names[:-1], first)
        }
        return ", ".join(f"{name} {num_records:,}" for name, num_records in passed.items())

    def _plan_barrier(self, level: int) -> None:
        stages = self.pipeline.stages
        stage = stages[level - 1] if level <= len(stages) else None
        if not isinstance(stage, Barrier) or self.workspace.has_barrier(level):
            return
        own = (self._barrier_input(stage, level, shard) for shard in self.plan.active)
        tables = chain(self._beside(stage, level), own) if stage.beside else own
        with ErrorContext(stage.name, "(all)", "the plan of the barrier").explained():
            self.workspace.save_barrier(level, stage.plan(tables))

    def _beside(self, barrier: Barrier, level: int) -> Iterator[pa.Table]:
        """The tables of the datasets beside a barrier, made by the workers where they are missing."""
        from pipelines.core.beside import BesideTables  # few barriers look at others

        beside = BesideTables(barrier, self.storage, self.workspace.folder(level))
        if pending := beside.pending():
            results = self.runner.run(beside.operators(), pending)
            sizes, label = _sizes(pending), f"{barrier.name} beside"
            for name in with_progress(results, label, sizes, sizes, self.progress):
                log.debug("shard=%s stages=%r status=done", name, label)
        return beside.tables()

    def _barrier_input(self, barrier: Barrier, level: int, shard: ShardPlan) -> pa.Table:
        if barrier.columns is not None and level > 1:
            table = self.workspace.load_columns(level - 1, shard.name, barrier.columns)
        else:
            table = load_input(self.workspace, self.pipeline.source, shard, level).table
        return table.replace_schema_metadata({SHARD_KEY: shard.name.encode()})

    def _checked(self) -> Manifest:
        """The manifest, from what the published files say; raises `LedgerError` if they do not add up."""
        facts = check_dataset(self.storage, self.plan.shards)
        return Manifest(
            corpus=self.pipeline.dataset,
            shards=tuple(facts.entries),
            records=facts.records,
            links=facts.links,
            fingerprint=self.plan.fingerprint,
            stages=facts.counts,
            alarms=alarms(
                facts.counts, self.pipeline.stages, facts.records.total, facts.records.kept
            ),
            config=self.plan.config,
            modules=self.plan.modules,
        )


def _sizes(plans: Iterable[ShardPlan]) -> dict[str, int]:
    """What the progress bar counts: records, or one for a shard of which they are not known."""
    return {s.name: 1 if s.num_records is None else s.num_records for s in plans}


def with_progress(
    results: Iterable[tuple[str, int]],
    label: str,
    shards: Mapping[str, int],
    pending: Collection[str],
    is_shown: bool,
    reached: Callable[[], str] = str,
    unit: str = "record",
) -> Iterator[str]:
    """Yield the names of shards as they are done, with a progress bar of records on standard error.

    Where that is no terminal (the log of a job), a line at most every ten seconds.

    Args:
        results: the shards as they are done.
        label: what is done to them.
        shards: all of them, with their numbers of records.
        pending: those that are not done yet.
        is_shown: whether there is a bar.
        reached: how far the shards that are not done have come, in words; asked while the bar waits.
        unit: what `shards` counts.
    """
    interval_s = 0.5 if sys.stderr.isatty() else 10.0
    left = sum(shards[name] for name in pending)
    with tqdm(
        desc=label,
        initial=sum(shards.values()) - left,
        total=sum(shards.values()),
        unit=unit,
        mininterval=interval_s,
        maxinterval=interval_s,
        disable=not is_shown,
    ) as bar:
        num_done = len(shards) - len(pending)

        def show() -> None:
            words = [f"{num_done:,}/{len(shards):,} shards", reached()]
            bar.set_postfix_str("; ".join(filter(None, words)), refresh=False)
            bar.refresh()

        with _repeated(show, FOLLOW_S if is_shown else None):
            for name, _ in results:
                num_done += 1
                bar.set_postfix_str(f"{num_done:,}/{len(shards):,} shards", refresh=False)
                bar.update(shards[name])
                yield name


@contextmanager
def _repeated(action: Callable[[], None], interval_s: float | None) -> Iterator[None]:
    """Call `action` in another thread every `interval_s` while the block runs; None never does."""
    if interval_s is None:
        yield
        return
    over = Event()

    def repeat() -> None:
        while not over.wait(interval_s):
            try:
                action()
            except (
                OSError,
                SchemaError,
            ):  # the storage is busy or away; the build itself will say so
                log.debug("progress=unknown", exc_info=True)

    follower = Thread(target=repeat, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
