"""Pipeline: the ordered list of what happens to a dataset, and what can go wrong in building it.

A stage maps an input shard to an output shard of the same name. Its steps see one shard as one Arrow
table whose rows are records; these columns are reserved and always there (the engine adds those that the
source leaves out, as nulls), all others belong to the corpus:

| column      | type              | meaning                                                            |
|-------------|-------------------|--------------------------------------------------------------------|
| key         | string            | of the record; becomes the key of the sample                       |
| source      | string            | input file                                                         |
| record      | int64             | 1-based line or row number in it                                   |
| links       | list<LINK_TYPE>   | the record's links (see `schemas/sample.py`), from the parse step on |
| drop_reason | string            | null; a step that sets it drops the record, the engine ledgers it  |
| drop_detail | string            | more for a person, or null                                         |

A transform returns as many rows as it was given, in the same order, with the same keys (where records become several,
see `division`): a record that cannot be kept gets a `drop_reason`. So nothing is lost silently: after each step the
engine takes dropped rows out and writes their rows, and those of their links, into the ledger. A link that a step drops
gets a `reason` and stays in its list; links may be added, never removed, changed or undropped. A filter only gives
reasons: a table in, for each row null or the reason to drop it out.

A step is called for every shard, also with a table without rows, so that columns never depend on the data.
The metadata of the table's schema names the shard (`shard_of(table)`).
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from schemas.sample import LINK_TYPE

if TYPE_CHECKING:
    from pipelines.core.storage import Storage
    from schemas.manifest import Manifest, ShardEntry


@dataclass(frozen=True)
class Reason:
    """What a reason word in the ledger means."""

    meaning: str
    """One sentence for a person."""
    retryable: bool = False
    """True where a later run may get another answer for the same link (`--retry-failed` takes exactly those)."""
    is_damage: bool = False
    """True where an input file is damaged and some of its records are lost: the build does not end with exit code 0."""


Reasons = Mapping[str, Reason]
"""By word, `[a-z0-9_]+`."""


class Rejected(Exception):
    """A record, a link or a value was turned down: data for the ledger, not an error of the program.

    Args:
        reason: a word of `[a-z0-9_]+` that the step which raises it documents.
        detail: more for a person; equal for equal inputs, so that two runs write the same ledger.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        assert re.fullmatch("[a-z0-9_]+", reason), reason
        super().__init__(reason if detail is None else f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Rejected"], tuple[str, str | None]]:
        return type(self), (self.reason, self.detail)


Transform = Callable[[pa.Table], pa.Table]
"""A transform that sets reasons, of records or of links, declares them in an attribute `reasons`."""

RECORD_FIELDS = (
    pa.field("key", pa.string()),
    pa.field("source", pa.string()),
    pa.field("record", pa.int64()),
    pa.field("links", pa.list_(LINK_TYPE)),
    pa.field("drop_reason", pa.string()),
    pa.field("drop_detail", pa.string()),
)
RESERVED = tuple(f.name for f in RECORD_FIELDS)
SHARD_KEY = b"shard"

RECORD_DROPPED = "record_dropped"
ENGINE_REASONS: Reasons = {
    RECORD_DROPPED: Reason("The link was still in use when its record was dropped.")
}
"""The words that the engine itself writes."""


def shard_of(table: pa.Table) -> str:
    """The name of the shard that a table given to a step is of."""
    return (table.schema.metadata or {})[SHARD_KEY].decode()


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs; the local runner ignores it."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int | None = None
    concurrency: int | None = None
    """Workers at most; null leaves it to the cluster."""


Ask = Callable[[Any], Awaitable[Any]]
"""Sends a message to the object that the workers of a stage share, and returns its reply."""


@dataclass(frozen=True)
class Construct:
    """A transform, or the test of a filter, that is made on the worker, once: a class that loads a model or opens a
    session.

    What is made and has a `close()` is closed when the worker ends.
    """

    make: Callable[..., Any]
    args: tuple[Any, ...] = ()
    reasons: Reasons = field(default_factory=dict)
    """The reasons that what is made may set, known without making it."""
    shared: Callable[[], Callable[[Any], Any]] | None = None
    """Makes what all workers of the stage share: a function of messages. `make` then gets an argument `ask: Ask`. A
    runner of one worker leaves both out."""

    @property
    def name(self) -> str:
        """The name of what is made."""
        return getattr(self.make, "__name__", type(self.make).__name__)


@dataclass(frozen=True)
class Filter:
    """A named test of records.

    The engine counts what it saw and what it dropped, by reason. A filter that drops more than
    `max_drop` of the records it saw in a whole dataset raises an alarm: a threshold in the wrong unit
    (such as a similarity of 30 where values lie in 0..1) must not pass for a clean dataset.
    """

    name: str
    test: "Callable[[pa.Table], pa.Array | pa.ChunkedArray] | Construct"
    """For each record null, which keeps it, or the word of the reason to drop it; or a struct of `reason` and
    `detail`. A `Construct` makes this function on the worker, once."""
    reasons: Reasons
    """Every word that the test may return."""
    max_drop: float = 0.9
    """Fraction of the records seen, from 0 to 1, above which there is an alarm."""
    resources: Resources | None = None
    """What a worker needs for it; null for next to nothing: it then shares the stage of others."""
    is_for_links: bool = False
    """True where it also tests records that have links and no segments yet: applied before they are fetched too."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_drop <= 1.0:
            raise ValueError(
                f"filter '{self.name}': max_drop {self.max_drop} is not in 0..1 (it is a fraction)"
            )


@dataclass(frozen=True)
class Stage:
    """Shard to shard: steps in order, committed together under the name of the stage."""

    name: str
    """`[a-z0-9_]+`; stands in the ledger beside what the stage drops."""
    steps: tuple[Transform | Construct | Filter, ...]
    resources: Resources = field(default_factory=Resources)
    max_drop: float = 0.9
    """Fraction of the records, or of the links, that it sees, above which there is an alarm."""


@dataclass(frozen=True)
class Barrier:
    """Dataset to dataset: sees the output of the stage before it as a whole (dedup, for example).

    `plan` reads all shards and returns what `apply` needs for each; the engine then applies it shard by
    shard, so that even a barrier writes one shard for one shard.
    """

    name: str
    plan: Callable[[Iterable[pa.Table]], Any]
    """Called once, on the driver, with the tables in order; its result is pickled and kept, so that a restart applies
    the same. A result larger than memory is a `PerShard`."""
    apply: Callable[[pa.Table, Any], pa.Table]
    """A shard's table, and the result of `plan` or, of a `PerShard`, the value of that shard (null without one)."""
    resources: Resources = field(default_factory=Resources)
    max_drop: float = 0.9
    reasons: Reasons = field(default_factory=dict)
    """Every word that `apply` may set."""
    columns: tuple[str, ...] | None = None
    """The columns that `plan` reads; null reads all, images included."""
    beside: tuple["Beside", ...] = ()
    """Other datasets, whose tables come first and name no shard."""


@dataclass(frozen=True)
class Beside:
    """Another dataset that a barrier looks at: what `plan` gets of it is made by the workers, shard by shard."""

    source: "Source"
    make: Transform


@dataclass(frozen=True)
class PerShard:
    """What the plan of a barrier found, shard by shard: neither the driver nor a worker holds all of it."""

    values: Iterable[tuple[str, Any]] = ()
    """Names of shards, each at most once, with what `apply` is given; may be a generator."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard of the input: its name, how many records it has, and where its source finds them."""

    name: str
    num_records: int | None
    """Null where only reading tells: what a worker reads is then what the ledger must account for."""
    parts: tuple[Mapping[str, Any], ...]
    """For the source alone; JSON values."""


class Source(Protocol):
    """Input records in a fixed order, cut into shards; unreadable ones get a word of `reasons`."""

    @property
    def reasons(self) -> Reasons:
        """Every word that `read` may set."""
        ...

    def plan(self, corpus: str) -> Sequence[ShardPlan]:
        """The shards, from reading the inputs once; equal inputs give equal plans."""
        ...

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard: `key`, `source`, `record` and the raw record, one row for each of
        `num_records`, if they are known; unreadable ones carry a `drop_reason`."""
        ...

    def fingerprint(self) -> str:
        """A hash of what the inputs are (names, sizes, contents or versions); cheap: asked at each start."""
        ...


class Sink(Protocol):
    """Where the surviving records of a shard end up."""

    def write(self, shard: str, table: pa.Table, storage: "Storage") -> "ShardEntry":
        """Write the samples of a shard and its index, atomically, and say what was written.

        One sample for each row, with its key; also for a table without rows. Replaces what is there.
        """
        ...


@dataclass(frozen=True)
class Pipeline:
    """A corpus from its source to its sink; the fingerprint covers `config` and all code but that of `finish`."""

    corpus: str
    """By whose rules it is built; its package in `pipelines.corpora`, if there is one, counts for the fingerprint."""
    source: Source
    stages: tuple[Stage | Barrier, ...]
    sink: Sink
    config: Mapping[str, Any] = field(default_factory=dict)
    finish: tuple[Callable[["Storage", "Manifest", Reasons], None], ...] = ()
    """Called with the checked manifest and `reasons` before the manifest is written (report, card); after a
    kill, again."""
    name: str | None = None
    """Of the dataset, where that is another than the name of the corpus."""

    @property
    def dataset(self) -> str:
        """The name that the manifest and the shards carry."""
        return self.name or self.corpus

    @property
    def reasons(self) -> Reasons:
        """Every reason that can stand in the ledger of the dataset, collected from source, stages and engine."""
        parts = [self.source, *(p for stage in self.stages for p in _parts(stage))]
        found = dict(ENGINE_REASONS)
        for part in parts:
            found |= reasons_of(part)
        return found


def reasons_of(part: object) -> Reasons:
    """The reasons that a source, a step or a barrier declares; none where it declares nothing."""
    return getattr(part, "reasons", {})


def step_name(step: Transform | Construct | Filter) -> str:
    """The name of a step for errors: of the filter, of what is constructed, of the function."""
    if isinstance(step, Filter | Construct):
        return step.name
    return getattr(step, "__name__", type(step).__name__)


def construct_of(step: Transform | Construct | Filter) -> Construct | None:
    """What of a step is made on the worker."""
    part = step.test if isinstance(step, Filter) else step
    return part if isinstance(part, Construct) else None


def _parts(stage: Stage | Barrier) -> Sequence[object]:
    return stage.steps if isinstance(stage, Stage) else (stage,)


class Extension(Protocol):
    """A stage that adds files to every shard of a finished dataset (features, for example).

    The manifest names what was added when all shards have it; until then the dataset is what it was before.
    """

    @property
    def name(self) -> str:
        """Of the stage, in errors and in the progress bar."""
        ...

    @property
    def resources(self) -> Resources:
        """What one worker needs."""
        ...

    def admit(self, manifest: "Manifest", root: str) -> "Manifest":
        """The manifest to start from; raises where the dataset has something else of this kind."""
        ...

    def is_done(self, storage: "Storage", entry: "ShardEntry") -> bool:
        """Whether a shard has what this stage adds, made from the shard as it is."""
        ...

    def open(self, storage: "Storage") -> Any:
        """The `ShardWork` of the stage, made on its worker; the one part of its shards is the entry of the manifest
        (`ShardEntry.as_dict`)."""
        ...

    def complete(self, manifest: "Manifest") -> "Manifest":
        """The manifest once every shard has it."""
        ...


class EngineError(RuntimeError):
    """A dataset that cannot be built as asked; says what was found and what to do."""


class StepError(EngineError):
    """A step that raised or broke the rules of tables; names the stage, the step and the shard."""

    def __init__(self, stage: str, shard: str, problem: str) -> None:
        super().__init__(stage, shard, problem)
        self.stage, self.shard, self.problem = stage, shard, problem

    def __str__(self) -> str:
        """One sentence: where, then what."""
        return f"stage '{self.stage}', shard '{self.shard}': {self.problem}"


class LedgerError(EngineError):
    """Records or links that do not add up: something was lost, doubled or made up."""


class RefusedError(EngineError):
    """A run that its options or the folder do not allow; nothing was done."""


class FingerprintError(RefusedError):
    """The folder holds a dataset, finished or not, of other inputs, configuration or code."""


class LockedError(EngineError):
    """Another run works on the same folder."""


class AlarmError(EngineError):
    """A filter or stage dropped more than its bound, and the caller asked to fail on that."""
