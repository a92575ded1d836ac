"""Workspace: what a build has done so far, in files below `OUT/.work`.

| file                                            | meaning                                         |
|-------------------------------------------------|-------------------------------------------------|
| `lock`                                          | who is at work (`lock.py`)                      |
| `plan.json`                                     | shards and fingerprint of the build in progress |
| `erase.json`                                    | the dataset before is being deleted (`erase.py`) |
| `<level>-<stage>/<shard>.<hash>.ledger.parquet` | the ledger of the shard up to this stage        |
| `<level>-<stage>/<shard>.arrow`                 | the surviving records; names its ledger         |
| `<level>-<stage>/barrier.pickle`                | what the plan of a barrier returned             |
| `<level>-publish/<shard>.json`                  | tar, index and ledger of the shard are in place |
| `tmp/`                                          | files being written                             |

The `.arrow` file is written after its ledger: its existence means that the stage is done for the shard.
Levels count from 1; level 0 is the source. The ledger carries its hash in its name, so that two workers on
one shard (one lost, but not dead) never pair the records of one with the ledger of the other. The output of
a stage is deleted when the next stage has committed: at any moment a shard exists at one level at least.
"""

import hashlib
import json
import pickle
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.steps import ShardState
from pipelines.core.storage import TEMPORARY, TEMPORARY_NAME, Storage
from pipelines.core.tables import read_arrow, read_arrow_schema, read_parquet, write_arrow
from schemas.sample import canonical_json
from schemas.tables import LEDGER
from schemas.validation import check_table

WORK = ".work"
PUBLISH = "publish"
ERASE_FILE = f"{WORK}/erase.json"
STATE_KEY = b"emu.state"
_LEVEL = re.compile(r"[0-9]{2,}-[a-z0-9_]+")


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

    def discard(self, level: int, shard: str) -> None:
        """Delete a shard at a level, which a later level has made superfluous."""
        path = self._path(level, shard)
        if level < 1 or not self.storage.exists(path):
            return
        about = json.loads(read_arrow_schema(self.storage, path).metadata[STATE_KEY])
        self.storage.delete(path)
        self.storage.delete(f"{self.folder(level)}/{about['ledger']}")

    def mark_published(self, shard: str) -> None:
        """Note that tar, index and ledger of the shard are in place."""
        self.storage.commit(self._path(self.last_level, shard), b"{}\n")

    def save_barrier(self, level: int, value: Any) -> None:
        """Keep what the plan of a barrier returned."""
        write = partial(pickle.dump, value, protocol=pickle.HIGHEST_PROTOCOL)
        self.storage.commit(self._barrier_path(level), write)

    def has_barrier(self, level: int) -> bool:
        """True if the plan of that barrier is kept."""
        return self.storage.exists(self._barrier_path(level))

    def load_barrier(self, level: int) -> Any:
        """What the plan of a barrier returned."""
        with self.storage.open(self._barrier_path(level)) as file:
            return pickle.load(file)

    def clear(self) -> None:
        """Delete the outputs of all stages, and what killed writers left."""
        for name in self.storage.list(WORK):
            if _LEVEL.fullmatch(name):
                self.storage.delete(f"{WORK}/{name}")
        self.clear_temporary()

    def clear_temporary(self) -> None:
        """Delete the half-written files of killed runs, and the folders that are empty then."""
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

    def _barrier_path(self, level: int) -> str:
        return f"{self.folder(level)}/barrier.pickle"


def _parquet_bytes(ledger: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(check_table(ledger, LEDGER), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
