"""How a run begins: what the folder holds decides between nothing to do, going on, and a new build."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipelines.core.errors import EngineError, FingerprintError
from pipelines.core.fingerprint import PipelineFingerprint
from pipelines.core.overwrite import ELSEWHERE, erase, find_traces, occupants
from pipelines.core.pipeline import Barrier, Pipeline
from pipelines.core.storage import Storage, read_parquet
from pipelines.core.workspace import (
    ERASE_FILE,
    PLAN_FILE,
    WORK,
    BuildPlan,
    Workspace,
    load_plan,
    plan_shards,
)
from schemas.manifest import MANIFEST_FILE, Manifest, manifest_from_json
from schemas.shard import LEDGERS
from schemas.tables import LEDGER
from schemas.validation import SchemaError

log = logging.getLogger(__name__)

OVERWRITE = "choose another folder, or begin again with --overwrite"


@dataclass(frozen=True)
class Request:
    """What a caller of `run` asks for."""

    pipeline: Pipeline
    storage: Storage
    redo: Callable[[pa.Table], bool] | None
    overwrite: bool

    def __post_init__(self) -> None:
        if self.redo is not None and self.overwrite:
            raise EngineError("redo and overwrite exclude each other: retry shards, or begin again")
        if self.redo is not None and any(isinstance(s, Barrier) for s in self.pipeline.stages):
            raise EngineError(
                "single shards cannot be made again: a barrier sees the whole dataset"
            )

    @cached_property
    def fingerprint(self) -> PipelineFingerprint:
        """Of the pipeline as it is now."""
        return PipelineFingerprint(self.pipeline)

    def finished_at_rest(self) -> Manifest | None:
        """The manifest of a finished dataset that the request leaves alone; needs no lock."""
        if self.redo or self.overwrite:
            return None
        try:
            manifest = load_manifest(self.storage)
        except SchemaError as error:
            raise _unreadable(self.storage, error) from error
        if manifest is None:
            return None
        # Temporary files alone are of somebody who adds to the dataset (features).
        if self.storage.list(WORK) not in ([], ["tmp"]):
            return None
        self.check_equal(manifest, "holds")
        return manifest

    def check_equal(self, found: Manifest | BuildPlan, verb: str) -> None:
        """Raise `FingerprintError` if what is there was made from something else."""
        words = self.differences(found)
        if words:
            raise FingerprintError(
                f"'{self.storage.root}' {verb} a dataset that differs in {words}; {OVERWRITE}"
            )

    def differences(self, found: Manifest | BuildPlan) -> str:
        """In words, what differs; empty if nothing does."""
        return self.fingerprint.differences(found.fingerprint, found.config, found.modules)


def load_manifest(storage: Storage) -> Manifest | None:
    """The manifest of a finished dataset, or null where there is none."""
    if not storage.exists(MANIFEST_FILE):
        return None
    where = storage.address(MANIFEST_FILE)
    try:
        text = storage.read_bytes(MANIFEST_FILE).decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"{where}: not a manifest: {error}") from error
    return manifest_from_json(text, where)


def decide(request: Request) -> Manifest | BuildPlan:
    """The manifest if there is nothing to do, else the plan of what to build; under the lock."""
    storage = request.storage
    try:
        plan, manifest = load_plan(storage), load_manifest(storage)
    except SchemaError as error:
        if request.overwrite:
            return _begin_again(request)
        raise _unreadable(storage, error) from error
    if storage.exists(ERASE_FILE):
        if request.overwrite:
            return _begin_again(request)
        if plan is None and manifest is None:
            raise EngineError(
                f"the overwriting of '{storage.root}' is not finished, its dataset is partly deleted; "
                "start it again, with overwrite"
            )
        # Killed before it deleted anything: what is there is whole.
        storage.delete(ERASE_FILE)
    if plan is not None and plan.redo is None and manifest is not None:
        # Killed between the manifest and the end: the dataset is finished.
        storage.delete(PLAN_FILE)
        plan = None
    if plan is None and manifest is not None:
        _workspace(request).clear()
    else:
        _workspace(request).clear_temporary()
    if plan is not None:
        return _go_on(request, plan)
    if manifest is not None:
        return _finished(request, manifest)
    return _from_nothing(request)


def _unreadable(storage: Storage, error: SchemaError) -> EngineError:
    """An error of a manifest or plan that cannot be read, with the way out that there is."""
    return EngineError(f"{error}; {OVERWRITE if find_traces(storage).marks else ELSEWHERE}")


def _workspace(request: Request) -> Workspace:
    return Workspace(request.storage, tuple(s.name for s in request.pipeline.stages))


def _go_on(request: Request, plan: BuildPlan) -> BuildPlan:
    root = request.storage.root
    if request.overwrite and request.differences(plan):
        return _begin_again(request)
    request.check_equal(plan, "has begun")
    if plan.redo is None and request.redo is not None:
        raise EngineError(
            f"the build in '{root}' is not finished; finish it before retrying shards"
        )
    if plan.redo is not None and request.overwrite:
        return _begin_again(request)
    if plan.redo is not None and request.redo is None:
        raise EngineError(
            f"a retry of {len(plan.redo)} shards in '{root}' is not finished; start the retry again, "
            "and it goes on where it was"
        )
    log.info("out=%s status=going_on shards=%d", root, len(plan.active))
    return plan


def _finished(request: Request, manifest: Manifest) -> Manifest | BuildPlan:
    if request.overwrite:
        return _begin_again(request)
    request.check_equal(manifest, "holds")
    if request.redo is None:
        return manifest
    chosen = []
    for entry in manifest.shards:
        ledger = read_parquet(request.storage, f"{LEDGERS}/{entry.name}.parquet", LEDGER)
        if request.redo(ledger):
            chosen.append(entry.name)
    if not chosen:
        log.info("out=%s status=nothing_to_redo", request.storage.root)
        return manifest
    plan = _new_plan(request, tuple(chosen))
    if [s.name for s in plan.shards] != [s.name for s in manifest.shards]:
        raise EngineError(f"the shards of '{request.storage.root}' are not those of the input now")
    plan.save(request.storage)
    return plan


def _from_nothing(request: Request) -> BuildPlan:
    storage = request.storage
    if request.redo is not None:
        raise EngineError(
            f"'{storage.root}' holds no finished dataset whose shards could be retried"
        )
    found = occupants(storage)
    if found and request.overwrite:
        return _begin_again(request)
    if found:
        way_out = OVERWRITE if find_traces(storage).marks else ELSEWHERE
        raise EngineError(
            f"'{storage.root}' holds {', '.join(found)} of no build that is known; {way_out}"
        )
    plan = _new_plan(request, None)
    plan.save(storage)
    return plan


def _begin_again(request: Request) -> BuildPlan:
    """Delete the dataset of a build, then plan anew; refuses where no build was."""
    storage = request.storage
    plan = _new_plan(request, None)
    log.warning("out=%s status=overwriting", storage.root)
    erase(storage, _workspace(request))
    plan.save(storage)
    return plan


def _new_plan(request: Request, redo: tuple[str, ...] | None) -> BuildPlan:
    return BuildPlan(
        fingerprint=request.fingerprint.hashes,
        config=request.fingerprint.config,
        modules=request.fingerprint.modules,
        shards=plan_shards(request.pipeline),
        redo=redo,
    )
