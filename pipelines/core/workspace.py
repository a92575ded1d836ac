"""Workspace: what a build has done so far, in files below `OUT/.work`.

| file                                            | meaning                                         |
|-------------------------------------------------|-------------------------------------------------|
| `lock`                                          | who works on the dataset (`folder.py`)          |
| `plan.json`                                     | shards and fingerprint of the build in progress |
| `overwrite.json`                                | the dataset before is being deleted (`resume.py`) |
| `<level>-<stage>/<shard>.<hash>.ledger.parquet` | the ledger of the shard up to this stage        |
| `<level>-<stage>/<shard>.arrow`                 | the records it still has; names its ledger      |
| `inputs/<hash>/inputs-000000.json`              | what the plan needs of a group of inputs        |
| `<level>-<stage>/barrier.pickle`                | what the plan of a barrier returned             |
| `<level>-<stage>/<shard>.barrier.pickle`        | what it returned for one shard (`PerShard`)     |
| `<level>-publish/<shard>.json`                  | tar, index and ledger of the shard are written  |
| `tmp/`                                          | files being written                             |

The `.arrow` file is written after its ledger: its existence means that the stage is done for the shard.
Levels count from 1; level 0 is the source. The ledger carries its hash in its name, so that two workers on
one shard (one lost to the driver, but still running) never pair the records of one with the ledger of the other.
The output of a stage is deleted when the next stage has committed: at any moment a shard exists at one level at least.

The build plan, `OUT/.work/plan.json`, says what a build in progress is made from, and its shards:

| field       | meaning                                                                    |
|-------------|----------------------------------------------------------------------------|
| schema      | `plan/2`                                                                   |
| fingerprint | of inputs, config and code, as in the manifest                             |
| config      | the configuration, to say what differs                                     |
| modules     | the modules behind the hash of the code, each with its own, for the same   |
| redo        | null, or the names of the shards that are made again in a finished dataset |
| shards      | list in order: `name`, `num_records`, `parts`                              |

It is the first file of a build, and the first to be deleted once the manifest is written.
"""

import hashlib
import json
import logging
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.contracts import Counts, no_rows
from pipelines.core.pipeline import EngineError, PerShard, Pipeline, ShardPlan
from pipelines.core.storage import (
    TEMPORARY,
    TEMPORARY_NAME,
    Storage,
    read_arrow,
    read_arrow_schema,
    read_parquet,
    write_arrow,
)
from schemas.manifest import CARD_FILE, CARD_MARK, Fingerprint
from schemas.sample import CORPUS_PATTERN, canonical_json
from schemas.table_spec import check_table
from schemas.tables import LEDGER, REASON_PATTERN, SHARD_PATTERN
from schemas.validation import SchemaError

log = logging.getLogger(__name__)

WORK = ".work"
PLAN_FILE = f"{WORK}/plan.json"
INPUTS = f"{WORK}/inputs"
PLAN_SCHEMA = "plan/2"
OVERWRITE_FILE = f"{WORK}/overwrite.json"
PUBLISH = "publish"
RESERVED_STAGES = ("read", PUBLISH)
STATE_KEY = b"emu.state"
_LEVEL = re.compile(r"[0-9]{2,}-[a-z0-9_]+")


@dataclass(frozen=True)
class ShardState:
    """What is known of a shard after some steps: records not dropped, the ledger so far, counts by stage."""

    table: pa.Table
    ledger: pa.Table = field(default_factory=no_rows)
    counts: Counts = field(default_factory=dict)


@dataclass(frozen=True)
class Workspace:
    """Outputs of stages by level and shard; `stages` are the names in order, without `publish`."""

    storage: Storage
    stages: tuple[str, ...]

    @property
    def last_level(self) -> int:
        """The level of a published shard."""
        return len(self.stages) + 1

    def folder(self, level: int) -> str:
        """The folder of a level."""
        return f"{WORK}/{level:02d}-{(*self.stages, PUBLISH)[level - 1]}"

    def level_of(self, shard: str) -> int:
        """The furthest level that the shard has reached; 0 if nothing is done."""
        levels = range(self.last_level, 0, -1)
        return next((n for n in levels if self.storage.exists(self._path(n, shard))), 0)

    def survey(self) -> dict[str, int]:
        """The furthest level of every shard that has reached one, from listing the folders."""
        reached: dict[str, int] = {}
        for level in range(1, self.last_level + 1):
            suffix = self._path(level, "").rpartition("/")[2]
            for name in self.storage.list(self.folder(level)):
                if name.endswith(suffix):
                    reached[name.removesuffix(suffix)] = level
        return reached

    def save(self, level: int, shard: str, state: ShardState) -> None:
        """Commit a shard at a level: the ledger first, the records last."""
        ledger = _parquet_bytes(state.ledger)
        name = f"{shard}.{hashlib.sha256(ledger).hexdigest()[:12]}.ledger.parquet"
        self.storage.commit(f"{self.folder(level)}/{name}", ledger)
        about = canonical_json({"ledger": name, "counts": state.counts}).encode()
        table = state.table.replace_schema_metadata({STATE_KEY: about})
        write_arrow(self.storage, self._path(level, shard), table)

    def load(self, level: int, shard: str) -> ShardState:
        """A shard as it was saved at a level."""
        table = read_arrow(self.storage, self._path(level, shard))
        about = json.loads(table.schema.metadata[STATE_KEY])
        ledger = read_parquet(self.storage, f"{self.folder(level)}/{about['ledger']}", LEDGER)
        return ShardState(table.replace_schema_metadata(None), ledger, about["counts"])

    def load_columns(self, level: int, shard: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a shard's records; of others nothing is read, from an object store either."""
        path = self._path(level, shard)
        names = read_arrow_schema(self.storage, path).names
        absent = sorted({*columns} - {*names})
        if absent:
            raise KeyError(
                f"the records of shard '{shard}' have no columns {absent} (they have {names})"
            )
        wanted = pa.ipc.IpcReadOptions(
            included_fields=[names.index(c) for c in columns], use_threads=False
        )
        with self.storage.open(path) as file, pa.ipc.open_file(file, options=wanted) as reader:
            return reader.read_all().replace_schema_metadata(None)

    def discard(self, level: int, shard: str) -> None:
        """Delete a shard at a level, once a later level has committed it."""
        path = self._path(level, shard)
        if level < 1 or not self.storage.exists(path):
            return
        about = json.loads(read_arrow_schema(self.storage, path).metadata[STATE_KEY])
        self.storage.delete(path)
        self.storage.delete(f"{self.folder(level)}/{about['ledger']}")

    def mark_published(self, shard: str) -> None:
        """Note that tar, index and ledger of the shard are written."""
        self.storage.commit(self._path(self.last_level, shard), b"{}\n")

    def save_barrier(self, level: int, value: Any) -> None:
        """Keep what the plan of a barrier returned; that of single shards in files of their own."""
        if isinstance(value, PerShard):
            for shard, part in value.values:
                self._save_pickle(self._barrier_path(level, shard), part)
            value = PerShard()
        self._save_pickle(self._barrier_path(level), value)

    def _save_pickle(self, path: str, value: Any) -> None:
        self.storage.commit(path, partial(pickle.dump, value, protocol=pickle.HIGHEST_PROTOCOL))

    def has_barrier(self, level: int) -> bool:
        """True if the plan of that barrier is kept."""
        return self.storage.exists(self._barrier_path(level))

    def load_barrier(self, level: int, shard: str | None = None) -> Any:
        """What the plan of a barrier returned, as a whole or for one shard (null if nothing)."""
        path = self._barrier_path(level, shard)
        if shard is not None and not self.storage.exists(path):
            return None
        with self.storage.open(path) as file:
            return pickle.load(file)

    def clear(self) -> None:
        """Delete the outputs of all stages, and what killed writers left."""
        for name in self.storage.list(WORK):
            if _LEVEL.fullmatch(name) or f"{WORK}/{name}" == INPUTS:
                self.storage.delete(f"{WORK}/{name}")
        self.clear_temporary()

    def clear_temporary(self) -> None:
        """Delete the half-written files of killed runs, and the folders that are then empty."""
        for name in self.storage.list(TEMPORARY):
            if TEMPORARY_NAME.fullmatch(name):
                self.storage.delete(f"{TEMPORARY}/{name}")
        for folder in (TEMPORARY, WORK):
            # Some stores keep empty folders.
            if self.storage.exists(folder) and not self.storage.list(folder):
                self.storage.delete(folder)

    def _path(self, level: int, shard: str) -> str:
        suffix = ".json" if level == self.last_level else ".arrow"
        return f"{self.folder(level)}/{shard}{suffix}"

    def _barrier_path(self, level: int, shard: str | None = None) -> str:
        return f"{self.folder(level)}/{f'{shard}.' if shard else ''}barrier.pickle"


def _parquet_bytes(ledger: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(check_table(ledger, LEDGER), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class BuildPlan:
    """The contents of `plan.json`."""

    fingerprint: Fingerprint
    config: Mapping[str, Any]
    modules: Mapping[str, str]
    shards: tuple[ShardPlan, ...]
    redo: tuple[str, ...] | None = None

    @property
    def active(self) -> tuple[ShardPlan, ...]:
        """The shards that this build makes: all, or those to be made again."""
        if self.redo is None:
            return self.shards
        chosen = set(self.redo)
        return tuple(s for s in self.shards if s.name in chosen)

    def save(self, storage: Storage) -> None:
        """Commit the plan."""
        document = {
            "schema": PLAN_SCHEMA,
            "fingerprint": asdict(self.fingerprint),
            "config": dict(self.config),
            "modules": dict(self.modules),
            "redo": self.redo,
            "shards": [shard_to_dict(s) for s in self.shards],
        }
        storage.commit(PLAN_FILE, (canonical_json(document) + "\n").encode())


def load_plan(storage: Storage) -> BuildPlan | None:
    """The plan of the build in progress, or null where there is none."""
    if not storage.exists(PLAN_FILE):
        return None
    where = storage.address(PLAN_FILE)
    try:
        document = json.loads(storage.read_bytes(PLAN_FILE))
        version = document.get("schema")
    except (ValueError, AttributeError, RecursionError) as error:
        raise SchemaError(f"{where}: not a plan: {error}") from error
    if version != PLAN_SCHEMA:
        raise SchemaError(
            f"{where}: version {version!r}, this release reads '{PLAN_SCHEMA}'; "
            "finish the build with the release that started it"
        )
    try:
        return BuildPlan(
            fingerprint=Fingerprint(**document["fingerprint"]),
            config=document["config"],
            modules=document["modules"],
            shards=tuple(shard_from_dict(s) for s in document["shards"]),
            redo=None if document["redo"] is None else tuple(document["redo"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"{where}: not a plan: {error!r}") from error


def checked_shards(pipeline: Pipeline, planned: Sequence[ShardPlan]) -> tuple[ShardPlan, ...]:
    """The shards that a pipeline's source has planned; raises `EngineError` naming the first bad one."""
    shards = tuple(planned)
    names = [s.name for s in shards]
    if names != sorted(set(names), key=lambda n: (len(n), n)):
        raise EngineError(f"the source plans shards twice or out of order: {names[:5]} ...")
    for shard in shards:
        if not re.fullmatch(SHARD_PATTERN, shard.name):
            raise EngineError(
                f"the source plans a shard '{shard.name}', which is not {SHARD_PATTERN}"
            )
        if not shard.name.startswith(f"{pipeline.dataset}-"):
            raise EngineError(
                f"shard '{shard.name}' is not named after corpus '{pipeline.dataset}'"
            )
        if shard.num_records is not None and shard.num_records < 0:
            raise EngineError(f"shard '{shard.name}' is planned with {shard.num_records} records")
    return shards


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise `EngineError` if the corpus or a stage has a name that ledger or folders cannot hold."""
    if not re.fullmatch(CORPUS_PATTERN, pipeline.dataset):
        raise EngineError(f"corpus '{pipeline.dataset}' is not {CORPUS_PATTERN}")
    names = [s.name for s in pipeline.stages]
    for name in names:
        if not re.fullmatch(REASON_PATTERN, name) or name in RESERVED_STAGES:
            raise EngineError(
                f"stage '{name}' is not {REASON_PATTERN}, or one of the engine's own {RESERVED_STAGES}"
            )
    if len(set(names)) < len(names):
        raise EngineError(f"two stages have the same name: {names}")
    for stage in pipeline.stages:
        if not 0.0 <= stage.max_drop <= 1.0:
            raise EngineError(
                f"stage '{stage.name}': max_drop {stage.max_drop} is not in 0..1 (it is a fraction)"
            )


def shard_to_dict(shard: ShardPlan) -> dict[str, Any]:
    """A shard of the plan as JSON values."""
    parts: Sequence[Mapping[str, Any]] = [dict(p) for p in shard.parts]
    return {"name": shard.name, "num_records": shard.num_records, "parts": parts}


def shard_from_dict(document: Mapping[str, Any]) -> ShardPlan:
    """A shard of the plan from JSON values; shards of one input share its name in memory."""
    parts = (
        {word: sys.intern(value) if type(value) is str else value for word, value in part.items()}
        for part in document["parts"]
    )
    return ShardPlan(document["name"], document["num_records"], tuple(parts))


def is_card(storage: Storage) -> bool:
    """Whether `README.md` is the card that a build wrote."""
    if not storage.exists(CARD_FILE) or storage.is_folder(CARD_FILE):
        return False
    return CARD_MARK.encode() in storage.read_bytes(CARD_FILE)
