"""Operators and runners: the work of each stage on one shard, and who does it where."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Protocol

from pipelines.core.stage import Resources, ShardPlan


class ShardWork(Protocol):
    """One stage, ready to work on one shard after another."""

    def __call__(self, shard: ShardPlan) -> int:
        """Do what is missing for the shard, commit it, and return how many records are left."""
        ...

    def close(self) -> None:
        """Give back what the steps hold (sessions, models)."""
        ...


@dataclass(frozen=True)
class Operator:
    """A stage as a runner sees it: name, needs, and how to make its work on a worker."""

    name: str
    resources: Resources
    open: Callable[[], ShardWork]
    is_stateful: bool = False
    """True if making it is costly (it constructs its transforms), so that a worker keeps it."""


class Runner(Protocol):
    """Puts shards through operators."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield name and number of records of each shard when the last operator is done with it.

        Every shard passes the operators in order; shards come in any order. An exception of a step
        arrives as `StepError`.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """Everything in this process, one shard after the other."""

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        """Yield each shard when it is done, in order."""
        with ExitStack() as stack:
            works = [stack.enter_context(closing(o.open())) for o in operators]
            for shard in shards:
                num_records = 0
                for work in works:
                    num_records = work(shard)
                yield shard.name, num_records
