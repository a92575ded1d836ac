"""Erasing a dataset: only where a build of this project left its mark, and only what such a build wrote.

Marks of a build, each naming its shards:

| mark                    | says so by                                                         |
|-------------------------|--------------------------------------------------------------------|
| `manifest.json`         | its `schema`, `manifest/…`                                         |
| `.work/plan.json`       | its `schema`, `plan/…`: the build is not finished                  |
| `.work/erase.json`      | its `schema`, `erase/…`: the erasing is not finished               |
| `ledger/<shard>.parquet`| `emu.shard` in its metadata, beside the name of the shard          |

A file in `shards/`, `index/` or `ledger/` that belongs to no such shard stops the erasing before it begins. The mark
`erase.json` is written first and goes last, so that a killed erasing is known for one.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.core.errors import EngineError
from pipelines.core.ledger import ABOUT_KEY
from pipelines.core.storage import Storage, read_parquet_metadata
from pipelines.core.workspace import ERASE_FILE, PLAN_FILE, Workspace
from schemas.manifest import MANIFEST_FILE
from schemas.sample import canonical_json
from schemas.shard import FEATURES, INDEXES, LEDGERS, SHARDS
from schemas.tables import SHARD_PATTERN

ERASE_SCHEMA = "erase/1"
REPORT_FILE = "report.html"
ELSEWHERE = "choose another folder, or move away what is there"

_SUFFIXES = {SHARDS: ".tar", INDEXES: ".parquet", LEDGERS: ".parquet", FEATURES: ".arrow"}
_PUBLISHED = (SHARDS, INDEXES, LEDGERS)
_SCHEMAS = {MANIFEST_FILE: "manifest/", PLAN_FILE: "plan/", ERASE_FILE: "erase/"}
_SHOWN = 5


@dataclass(frozen=True)
class Traces:
    """What builds left in a folder: the files that say so, and the shards that they wrote or were to write."""

    marks: tuple[str, ...]
    shards: frozenset[str]


def find_traces(storage: Storage) -> Traces:
    """The marks of builds in a folder, whole or in pieces; no marks where there was no build."""
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


def erase(storage: Storage, workspace: Workspace) -> None:
    """Delete the dataset of a build, or what an earlier erasing left of it.

    Raises:
        EngineError: the folder bears no mark of a build, or holds files among the shards that no build
            wrote. Nothing is deleted then.
    """
    traces = find_traces(storage)
    _refuse_strangers(storage, traces)
    document = {"schema": ERASE_SCHEMA, "shards": sorted(traces.shards)}
    storage.commit(ERASE_FILE, (canonical_json(document) + "\n").encode())
    for path in (MANIFEST_FILE, PLAN_FILE):
        storage.delete(path)
    for folder, suffix in _SUFFIXES.items():
        for name in storage.list(folder):
            if name.removesuffix(suffix) in traces.shards and name.endswith(suffix):
                storage.delete(f"{folder}/{name}")
    storage.delete(REPORT_FILE)
    workspace.clear()
    storage.delete(ERASE_FILE)


def _refuse_strangers(storage: Storage, traces: Traces) -> None:
    strangers = list(_strangers(storage, traces))
    if not traces.marks:
        strangers += [p for p in occupants(storage) if not p.startswith(_PUBLISHED)]
    if not strangers:
        return
    shown = ", ".join(strangers[:_SHOWN]) + (" …" if len(strangers) > _SHOWN else "")
    if traces.marks:
        found = f"'{storage.root}' holds, beside a dataset, what no build wrote: {shown}"
    else:
        found = (
            f"'{storage.root}' holds {shown}, and nothing that says that a build wrote it (a "
            f"{MANIFEST_FILE} or {PLAN_FILE} of ours, or ledgers)"
        )
    raise EngineError(f"{found}; nothing was deleted: {ELSEWHERE}")


def _strangers(storage: Storage, traces: Traces) -> Iterator[str]:
    """Files that stand where a build would write, but are of none."""
    if not traces.marks:
        # With other marks beside it, it is a damaged one of ours.
        yield from (path for path in _SCHEMAS if storage.exists(path))
    for folder in _PUBLISHED:
        for name in storage.list(folder):
            suffix = _SUFFIXES[folder]
            is_ours = name.endswith(suffix) and name.removesuffix(suffix) in traces.shards
            if not is_ours or storage.is_folder(f"{folder}/{name}"):
                yield f"{folder}/{name}"


def _document(storage: Storage, path: str) -> Mapping[str, Any] | None:
    """A mark's contents; null where the file is not there or not of a build."""
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
    """The shards of a manifest, a plan (entries with a `name`) or an erasing (names), of any version."""
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
