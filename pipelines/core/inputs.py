"""Planning on workers: a source with many inputs is looked at input by input before it is cut into shards.

What a worker finds in a group of inputs is a file of the work folder, so a build that was killed while it planned looks
at the rest. Few inputs, and those of a trial with a limit, are planned in the driver.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from pipelines.core.contracts import ErrorContext
from pipelines.core.pipeline import EngineError, Resources, ShardPlan, Source
from pipelines.core.stage_runner import Operator, Runner
from pipelines.core.storage import Storage
from pipelines.core.workspace import INPUTS
from schemas.sample import canonical_json

MIN_INPUTS = 32
"""Inputs from which on workers look at them."""
NUM_GROUPS = 512
"""Units of work at most: each is a file of the work folder."""
NAME = "plan"

Progress = Callable[[Iterator[tuple[str, int]], str, Mapping[str, int], Sequence[str]], Any]
"""Takes the results of a runner, a label, the sizes of all groups and the names of those that are pending."""


class PlanError(ValueError):
    """An input that cannot be planned; the message names it."""


@runtime_checkable
class InputSource(Source, Protocol):
    """A `Source` whose plan follows from what is in each of its inputs."""

    def inputs(self) -> Sequence[str]:
        """What is looked at one by one, in the order of the records; empty where the driver is to plan."""
        ...

    def look(self, name: str) -> Mapping[str, Any]:
        """What the plan needs of an input, as JSON values; raises ValueError for one that is no input."""
        ...

    def plan_of(self, corpus: str, found: Iterator[Mapping[str, Any]]) -> Sequence[ShardPlan]:
        """The shards, from what was found in each input; the same as those of `plan`."""
        ...


def planned(
    source: Source, corpus: str, storage: Storage, runner: Runner, follow: Progress
) -> Sequence[ShardPlan]:
    """The shards of a source, planned by the workers of `runner` where it has many inputs.

    Raises:
        ValueError: as the source does for inputs that cannot be read.
    """
    names = source.inputs() if isinstance(source, InputSource) else ()
    if len(names) < MIN_INPUTS:
        return source.plan(corpus)
    assert isinstance(source, InputSource)
    looks = Looks(source, tuple(names), storage, source.fingerprint())
    if pending := looks.pending():
        sizes = {group.name: len(group.parts) for group in looks.groups}
        results = runner.run([Operator(NAME, Resources(), partial(LookWork, looks))], pending)
        follow(results, "plan: inputs", sizes, [group.name for group in pending])
    return source.plan_of(corpus, looks.found())


@dataclass(frozen=True)
class Looks:
    """What is found in the inputs of a source, group by group, in the work folder."""

    source: InputSource
    names: tuple[str, ...]
    storage: Storage
    fingerprint: str

    @cached_property
    def groups(self) -> list[ShardPlan]:
        """Neighbouring inputs that are looked at together."""
        num_groups = min(len(self.names), NUM_GROUPS)
        bounds = [n * len(self.names) // num_groups for n in range(num_groups + 1)]
        return [
            ShardPlan(f"inputs-{n:06d}", None, tuple({"input": i} for i in self.names[start:stop]))
            for n, (start, stop) in enumerate(pairwise(bounds))
        ]

    def pending(self) -> list[ShardPlan]:
        """The groups that nobody has looked at yet."""
        done = set(self.storage.list(self._folder))
        return [group for group in self.groups if f"{group.name}.json" not in done]

    def look(self, group: ShardPlan) -> int:
        """Look at the inputs of a group and keep what is found; returns their number."""
        with ErrorContext(NAME, group.name, "the source").explained():
            try:
                found: Any = [self.source.look(part["input"]) for part in group.parts]
            except ValueError as error:  # to be raised in the driver as it is
                found = {"error": str(error)}
            self.storage.commit(self._path(group), canonical_json(found).encode())
        return len(group.parts)

    def found(self) -> Iterator[Mapping[str, Any]]:
        """What was found, input by input.

        Raises:
            PlanError: an input cannot be planned; the next run looks at it again.
            EngineError: the runner ended too early.
        """
        for group in self.groups:
            if not self.storage.exists(self._path(group)):
                raise EngineError(f"the runner ended without '{group.name}'")
            found = json.loads(self.storage.read_bytes(self._path(group)))
            if isinstance(found, dict):
                self.storage.delete(self._path(group))
                raise PlanError(found["error"])
            yield from found

    def _path(self, group: ShardPlan) -> str:
        return f"{self._folder}/{group.name}.json"

    @cached_property
    def _folder(self) -> str:
        """For these inputs, as they are now and as they are cut: others are not mistaken for them."""
        about = f"{self.fingerprint}\0{self.source!r}\0{len(self.names)}"
        return f"{INPUTS}/{hashlib.sha256(about.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class LookWork:
    """Looks at one group of inputs after another."""

    looks: Looks

    def __call__(self, shard: ShardPlan) -> int:
        """Do it and keep what is found; returns the number of inputs."""
        return self.looks.look(shard)

    def close(self) -> None:
        """Nothing is held."""
