"""Other datasets that a barrier looks at before its own: what it needs of them is made by the workers.

Each shard of the others becomes a file in the folder of the barrier, once; a restart makes those that are missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipelines.core.contracts import ErrorContext
from pipelines.core.pipeline import Barrier, Beside, EngineError, ShardPlan
from pipelines.core.stage_runner import Operator
from pipelines.core.storage import Storage, read_arrow, write_arrow


@dataclass(frozen=True)
class BesideTables:
    """The tables of the datasets beside a barrier, kept in a folder of the workspace."""

    barrier: Barrier
    storage: Storage
    folder: str

    def pending(self) -> list[ShardPlan]:
        """The shards of the others that are not made yet."""
        return [p for plans in self._plans() for p in plans if not self._is_done(p)]

    def operators(self) -> list[Operator]:
        """What makes a shard of the others."""
        work = partial(BesideWork, self)
        return [Operator(f"{self.barrier.name} beside", self.barrier.resources, work)]

    def tables(self) -> Iterator[pa.Table]:
        """The tables, dataset by dataset; raises `EngineError` if one is missing."""
        for plans in self._plans():
            for plan in plans:
                if not self._is_done(plan):
                    raise EngineError(f"the runner ended without shard '{plan.name}'")
                yield read_arrow(self.storage, self.path(plan))

    def path(self, plan: ShardPlan) -> str:
        """The file of a shard of the others."""
        return f"{self.folder}/beside/{plan.name}.arrow"

    def of(self, plan: ShardPlan) -> Beside:
        """The dataset that a shard is of."""
        return self.barrier.beside[int(plan.name.rpartition("-")[0].removeprefix(PREFIX))]

    def _is_done(self, plan: ShardPlan) -> bool:
        return self.storage.exists(self.path(plan))

    def _plans(self) -> Iterator[list[ShardPlan]]:
        for number, beside in enumerate(self.barrier.beside):
            yield list(beside.source.plan(f"{PREFIX}{number}"))


PREFIX = "beside"


@dataclass(frozen=True)
class BesideWork:
    """Makes one shard of the others after another."""

    beside: BesideTables

    def __call__(self, shard: ShardPlan) -> int:
        """Make the table of a shard and keep it; returns its rows."""
        of = self.beside.of(shard)
        with ErrorContext(self.beside.barrier.name, shard.name, "a dataset beside it").explained():
            table = of.make(of.source.read(shard))
            write_arrow(self.beside.storage, self.beside.path(shard), table)
        return table.num_rows

    def close(self) -> None:
        """Nothing is held."""
