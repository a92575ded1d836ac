"""Build plan, `OUT/.work/plan.json`: what a build in progress is made from, and its shards.

| field       | meaning                                                                   |
|-------------|---------------------------------------------------------------------------|
| schema      | `plan/1`                                                                  |
| fingerprint | of inputs, config and code, as in the manifest                            |
| config      | the configuration, to say what differs                                    |
| redo        | null, or the names of the shards that are made again in a finished dataset |
| shards      | list in order: `name`, `num_records`, `parts`                             |

The plan is the first file of a build and the first to go when the manifest is written.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.core.errors import EngineError
from pipelines.core.stage import Pipeline, ShardPlan
from pipelines.core.storage import Storage
from pipelines.core.workspace import WORK
from schemas.manifest import Fingerprint
from schemas.sample import CORPUS_PATTERN, canonical_json
from schemas.tables import REASON_PATTERN, SHARD_PATTERN
from schemas.validation import SchemaError

PLAN_FILE = f"{WORK}/plan.json"
PLAN_SCHEMA = "plan/1"
RESERVED_STAGES = ("read", "publish")


@dataclass(frozen=True)
class BuildPlan:
    """The contents of `plan.json`."""

    fingerprint: Fingerprint
    config: Mapping[str, Any]
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
            "finish the build with the release that began it"
        )
    try:
        return BuildPlan(
            fingerprint=Fingerprint(**document["fingerprint"]),
            config=document["config"],
            shards=tuple(shard_from_dict(s) for s in document["shards"]),
            redo=None if document["redo"] is None else tuple(document["redo"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"{where}: not a plan: {error!r}") from error


def plan_shards(pipeline: Pipeline) -> tuple[ShardPlan, ...]:
    """The checked shards of a pipeline's source; raises `EngineError` naming the first bad one."""
    shards = tuple(pipeline.source.plan(pipeline.corpus))
    names = [s.name for s in shards]
    if names != sorted(set(names), key=lambda n: (len(n), n)):
        raise EngineError(f"the source plans shards doubled or out of order: {names[:5]} ...")
    for shard in shards:
        if not re.fullmatch(SHARD_PATTERN, shard.name):
            raise EngineError(
                f"the source plans a shard '{shard.name}', which is not {SHARD_PATTERN}"
            )
        if not shard.name.startswith(f"{pipeline.corpus}-"):
            raise EngineError(f"shard '{shard.name}' is not named after corpus '{pipeline.corpus}'")
        if shard.num_records < 0:
            raise EngineError(f"shard '{shard.name}' is planned with {shard.num_records} records")
    return shards


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise `EngineError` if the corpus or a stage has a name that ledger and folders cannot bear."""
    if not re.fullmatch(CORPUS_PATTERN, pipeline.corpus):
        raise EngineError(f"corpus '{pipeline.corpus}' is not {CORPUS_PATTERN}")
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
    """A shard of the plan from JSON values."""
    return ShardPlan(document["name"], document["num_records"], tuple(document["parts"]))
