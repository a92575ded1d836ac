"""Resume, start or overwrite: what a folder holds decides what a run does with it.

| the folder holds                     | a plain run          | with `overwrite`         | with `redo`                |
|--------------------------------------|----------------------|--------------------------|----------------------------|
| nothing of a build                   | starts               | starts                   | is refused                 |
| an unfinished build, same fingerprint| resumes              | resumes                  | is refused                 |
| a finished dataset, same fingerprint | leaves it as it is   | deletes it and starts    | remakes the chosen shards  |
| either of another fingerprint        | is refused           | deletes it and starts    | is refused                 |
| an unfinished retry (`redo`)         | is refused           | deletes it and starts    | resumes                    |
| files in the places of a dataset     | is refused           | is refused               | is refused                 |
| other files, and no dataset          | starts               | is refused               | is refused                 |

Overwriting deletes only where a build of this project left its mark, and only what such a build wrote. The marks,
each naming its shards:

| mark                     | recognised by                                                       |
|--------------------------|---------------------------------------------------------------------|
| `manifest.json`          | its `schema`, `manifest/…`                                          |
| `.work/plan.json`        | its `schema`, `plan/…`: the build is not finished                   |
| `.work/overwrite.json`   | its `schema`, `overwrite/…`: the deletion is not finished           |
| `ledger/<shard>.parquet` | `emu.shard` in its metadata, beside the name of the shard           |

A file in `shards/`, `index/` or `ledger/` that belongs to no such shard stops the deletion before it starts. The mark
`overwrite.json` is written first and deleted last, so that a killed deletion is recognised.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.core.contracts import ABOUT_KEY
from pipelines.core.fingerprint import PipelineFingerprint
from pipelines.core.folder import load_manifest
from pipelines.core.pipeline import Barrier, FingerprintError, Pipeline, RefusedError, ShardPlan
from pipelines.core.storage import Storage, read_parquet, read_parquet_metadata
from pipelines.core.workspace import (
    OVERWRITE_FILE,
    PLAN_FILE,
    WORK,
    BuildPlan,
    Workspace,
    checked_shards,
    is_card,
    load_plan,
)
from schemas.manifest import CARD_FILE, MANIFEST_FILE, REPORT_FILE, Manifest
from schemas.sample import canonical_json
from schemas.shard import FEATURES, INDEXES, LEDGERS, PARQUET, SHARDS
from schemas.tables import LEDGER, SHARD_PATTERN
from schemas.validation import SchemaError

log = logging.getLogger(__name__)

OVERWRITE_SCHEMA = "overwrite/1"
START_OVER = "choose another folder, or start over with --overwrite"
ELSEWHERE = "choose another folder, or move these files away"

_SUFFIXES = {
    SHARDS: ".tar",
    INDEXES: ".parquet",
    LEDGERS: ".parquet",
    FEATURES: ".arrow",
    PARQUET: ".parquet",
}
_PUBLISHED = (SHARDS, INDEXES, LEDGERS)
_SCHEMAS = {MANIFEST_FILE: "manifest/", PLAN_FILE: "plan/", OVERWRITE_FILE: "overwrite/"}
_SHOWN = 5


@dataclass(frozen=True)
class RunRequest:
    """What a caller of `run` asks for."""

    pipeline: Pipeline
    storage: Storage
    redo: Callable[[pa.Table], bool] | None
    overwrite: bool
    plan: Callable[[], Sequence[ShardPlan]]
    """Plans the shards of the source."""

    def __post_init__(self) -> None:
        if self.redo is not None and self.overwrite:
            raise RefusedError("redo and overwrite exclude each other: retry shards, or start over")
        if self.redo is not None and any(isinstance(s, Barrier) for s in self.pipeline.stages):
            raise RefusedError(
                "single shards cannot be made again: a barrier sees the whole dataset"
            )

    @cached_property
    def fingerprint(self) -> PipelineFingerprint:
        """Of the pipeline as it is now."""
        return PipelineFingerprint(self.pipeline)

    @property
    def workspace(self) -> Workspace:
        """The outputs of the pipeline's stages in the folder."""
        return Workspace(self.storage, tuple(s.name for s in self.pipeline.stages))

    def finished_manifest(self) -> Manifest | None:
        """The manifest of a finished dataset that the request leaves as it is; needs no lock."""
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
        self.check_same(manifest, "a finished dataset")
        return manifest

    def check_same(self, found: Manifest | BuildPlan, what: str) -> None:
        """Raise `FingerprintError` if what the folder holds was made from something else."""
        words = self.differences(found)
        if words:
            raise FingerprintError(
                f"'{self.storage.root}' holds {what} that differs in {words}; {START_OVER}"
            )

    def differences(self, found: Manifest | BuildPlan) -> str:
        """In words, what differs; empty if nothing does."""
        return self.fingerprint.differences(found.fingerprint, found.config, found.modules)


def decide(request: RunRequest) -> Manifest | BuildPlan:
    """The manifest if there is nothing to do, else the plan of what to build; call it under the lock."""
    storage = request.storage
    try:
        plan, manifest = load_plan(storage), load_manifest(storage)
    except SchemaError as error:
        if request.overwrite:
            return _start_over(request)
        raise _unreadable(storage, error) from error
    if storage.exists(OVERWRITE_FILE):
        if request.overwrite:
            return _start_over(request)
        if plan is None and manifest is None:
            raise RefusedError(
                f"the overwriting of '{storage.root}' is not finished, its dataset is partly deleted; "
                "run it again with --overwrite"
            )
        # Killed before it deleted anything: the dataset is whole.
        storage.delete(OVERWRITE_FILE)
    if plan is not None and plan.redo is None and manifest is not None:
        # Killed between the manifest and the end: the dataset is finished.
        storage.delete(PLAN_FILE)
        plan = None
    if plan is None and manifest is not None:
        request.workspace.clear()
    else:
        request.workspace.clear_temporary()
    if plan is not None:
        return _resume(request, plan)
    if manifest is not None:
        return _keep_or_redo(request, manifest)
    return _start(request)


def _unreadable(storage: Storage, error: SchemaError) -> RefusedError:
    """An error of a manifest or plan that cannot be read, with what can be done about it."""
    return RefusedError(f"{error}; {START_OVER if find_traces(storage).marks else ELSEWHERE}")


def _resume(request: RunRequest, plan: BuildPlan) -> BuildPlan:
    root = request.storage.root
    if request.overwrite and request.differences(plan):
        return _start_over(request)
    request.check_same(plan, "an unfinished build")
    if plan.redo is None and request.redo is not None:
        raise RefusedError(
            f"the build in '{root}' is not finished; finish it before retrying shards"
        )
    if plan.redo is not None and request.overwrite:
        return _start_over(request)
    if plan.redo is not None and request.redo is None:
        raise RefusedError(
            f"a retry of {len(plan.redo)} shards in '{root}' is not finished; start the retry again, "
            "it resumes where it stopped"
        )
    log.info("out=%s status=resuming shards=%d", root, len(plan.active))
    return plan


def _keep_or_redo(request: RunRequest, manifest: Manifest) -> Manifest | BuildPlan:
    if request.overwrite:
        return _start_over(request)
    request.check_same(manifest, "a finished dataset")
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
        raise RefusedError(
            f"the shards of '{request.storage.root}' are not those of the inputs now"
        )
    plan.save(request.storage)
    return plan


def _start(request: RunRequest) -> BuildPlan:
    storage = request.storage
    if request.redo is not None:
        raise RefusedError(
            f"'{storage.root}' holds no finished dataset whose shards could be retried"
        )
    found = occupants(storage)
    if found and request.overwrite:
        return _start_over(request)
    others = sorted({*storage.list("")} - {WORK, *_SUFFIXES})
    if others and request.overwrite:
        raise RefusedError(
            f"'{storage.root}' holds {_some(others)}, and no dataset that could be overwritten; "
            "nothing was deleted: choose another folder, or leave out --overwrite"
        )
    if found:
        hint = START_OVER if find_traces(storage).marks else ELSEWHERE
        raise RefusedError(
            f"'{storage.root}' holds {', '.join(found)} of no build that is known; {hint}"
        )
    plan = _new_plan(request, None)
    plan.save(storage)
    return plan


def _start_over(request: RunRequest) -> BuildPlan:
    """Delete the dataset of a build, then start; refuses where no build was."""
    storage = request.storage
    plan = _new_plan(request, None)
    log.warning("out=%s status=overwriting", storage.root)
    delete_dataset(storage, request.workspace)
    plan.save(storage)
    return plan


def _new_plan(request: RunRequest, redo: tuple[str, ...] | None) -> BuildPlan:
    return BuildPlan(
        fingerprint=request.fingerprint.hashes,
        config=request.fingerprint.config,
        modules=request.fingerprint.modules,
        shards=checked_shards(request.pipeline, request.plan()),
        redo=redo,
    )


@dataclass(frozen=True)
class Traces:
    """What builds left in a folder: the files that prove it, and the shards that they wrote or were to write."""

    marks: tuple[str, ...]
    shards: frozenset[str]


def find_traces(storage: Storage) -> Traces:
    """The marks of builds in a folder, complete or not; no marks where there was no build."""
    marks: list[str] = []
    shards: set[str] = set()
    for path in _SCHEMAS:
        document = _document(storage, path)
        if document is not None:
            marks.append(path)
            shards |= _named_shards(document)
    for shard in _by_name(storage, LEDGERS):
        if shard not in shards and _is_ledger_of_a_build(storage, shard):
            marks.append(f"{LEDGERS}/{shard}.parquet")
            shards.add(shard)
    return Traces(tuple(marks), frozenset(shards))


def occupants(storage: Storage) -> list[str]:
    """What is in the folder under names that a build would write to."""
    folders = [f"{folder}/" for folder in _SUFFIXES if storage.list(folder)]
    return [*folders, *(p for p in (REPORT_FILE,) if storage.exists(p))]


def delete_dataset(storage: Storage, workspace: Workspace) -> None:
    """Delete the dataset of a build, or what an earlier, killed deletion left of it.

    Raises:
        RefusedError: the folder bears no mark of a build, or holds files among the shards that no build
            wrote. Nothing is deleted then.
    """
    traces = find_traces(storage)
    _refuse_foreign_files(storage, traces)
    document = {"schema": OVERWRITE_SCHEMA, "shards": sorted(traces.shards)}
    storage.commit(OVERWRITE_FILE, (canonical_json(document) + "\n").encode())
    for path in (MANIFEST_FILE, PLAN_FILE):
        storage.delete(path)
    for folder, suffix in _SUFFIXES.items():
        for name in storage.list(folder):
            if name.removesuffix(suffix) in traces.shards and name.endswith(suffix):
                storage.delete(f"{folder}/{name}")
    storage.delete(REPORT_FILE)
    if is_card(storage):
        storage.delete(CARD_FILE)
    workspace.clear()
    storage.delete(OVERWRITE_FILE)


def _refuse_foreign_files(storage: Storage, traces: Traces) -> None:
    foreign = list(_foreign_files(storage, traces))
    if not traces.marks:
        foreign += [p for p in occupants(storage) if not p.startswith(_PUBLISHED)]
    if not foreign:
        return
    shown = _some(foreign)
    if traces.marks:
        found = f"'{storage.root}' holds, beside a dataset, files that no build wrote: {shown}"
    else:
        found = (
            f"'{storage.root}' holds {shown}, and nothing that shows that a build wrote it (a "
            f"{MANIFEST_FILE} or {PLAN_FILE} of ours, or ledgers)"
        )
    raise RefusedError(f"{found}; nothing was deleted: {ELSEWHERE}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _foreign_files(storage: Storage, traces: Traces) -> Iterator[str]:
    """Files where a build would write, but which none wrote."""
    if not traces.marks:
        # With other marks beside it, it is a damaged mark of ours.
        yield from (path for path in _SCHEMAS if storage.exists(path))
    for folder in _PUBLISHED:
        for name in storage.list(folder):
            suffix = _SUFFIXES[folder]
            is_ours = name.endswith(suffix) and name.removesuffix(suffix) in traces.shards
            if not is_ours or storage.is_folder(f"{folder}/{name}"):
                yield f"{folder}/{name}"


def _document(storage: Storage, path: str) -> Mapping[str, Any] | None:
    """A mark's contents; null where there is no file, or not one of a build."""
    if not storage.exists(path) or storage.is_folder(path):
        return None
    try:
        document = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, Mapping):
        return None
    return document if str(document.get("schema")).startswith(_SCHEMAS[path]) else None


def _named_shards(document: Mapping[str, Any]) -> set[str]:
    """The shards of a manifest, a plan (entries with a `name`) or an overwriting (names), of any version."""
    entries = document.get("shards")
    names = [
        entry.get("name") if isinstance(entry, Mapping) else entry
        for entry in (entries if isinstance(entries, list) else [])
    ]
    return {n for n in names if isinstance(n, str) and re.fullmatch(SHARD_PATTERN, n)}


def _by_name(storage: Storage, folder: str) -> list[str]:
    """The shards that the files of a folder are named after."""
    suffix = _SUFFIXES[folder]
    stems = [n.removesuffix(suffix) for n in storage.list(folder) if n.endswith(suffix)]
    return [stem for stem in stems if re.fullmatch(SHARD_PATTERN, stem)]


def _is_ledger_of_a_build(storage: Storage, shard: str) -> bool:
    path = f"{LEDGERS}/{shard}.parquet"
    if storage.is_folder(path):
        return False
    try:
        about = json.loads(read_parquet_metadata(storage, path).get(ABOUT_KEY, b"null"))
    except (pa.ArrowInvalid, ValueError):
        return False
    entry = about.get("entry") if isinstance(about, Mapping) else None
    return isinstance(entry, Mapping) and entry.get("name") == shard
