"""Dedup in a pipeline: a stage that makes signatures on the workers, and a barrier that drops duplicates.

Whatever the number of workers, of samples that are duplicates the first in the order of the dataset stays (see
`finder.py`). The ledger names the one that stays in the detail of each that is dropped: `of KEY` begins it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.core.pipeline import (
    Barrier,
    Beside,
    PerShard,
    Pipeline,
    Reason,
    Reasons,
    Stage,
    shard_of,
)
from pipelines.core.storage import Storage
from pipelines.dedup.finder import KINDS, NEAR_IMAGE, NEAR_TEXT, Drop, DuplicateFinder
from pipelines.dedup.signatures import PREFIX, Signatures, signature_column
from pipelines.readers.published import DatasetSource
from schemas.manifest import MANIFEST_FILE

STAGE = "dedup"
SIGNATURE_STAGE = "signatures"
REASONS: Reasons = {
    "duplicate_url": Reason("An earlier sample has the same web address."),
    "duplicate_sample": Reason("An earlier sample has the same images and texts."),
    "duplicate_image": Reason("An earlier sample has the same images, byte for byte."),
    "duplicate_text": Reason("An earlier sample has the same text, but for case and spaces."),
    "duplicate_near_image": Reason(
        "An earlier sample has nearly the same images (perceptual hash)."
    ),
    "duplicate_near_text": Reason("An earlier sample has nearly the same text (MinHash)."),
}


@dataclass(frozen=True)
class Dedup:
    """Which duplicates are dropped."""

    kinds: tuple[str, ...]
    radius: int = 4
    similarity: float = 0.8
    against: tuple[str, ...] = ()
    """Finished datasets whose samples count as earlier ones."""
    folder: str | None = None
    """For files of the plan, on the driver; null takes the system's folder for temporary files."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.kinds} - {*KINDS})
        if unknown:
            raise ValueError(f"dedup: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
        if not 0 <= self.radius <= 8:
            raise ValueError(f"dedup: radius is {self.radius}, give a number of bits from 0 to 8")
        if not 0.5 <= self.similarity <= 1:
            raise ValueError(f"dedup: similarity is {self.similarity}, give a share from 0.5 to 1")

    @property
    def config(self) -> dict[str, Any]:
        """What decides on the samples: the datasets by their manifests, wherever they lie."""
        manifests = [Storage(root).read_bytes(MANIFEST_FILE) for root in self.against]
        found = asdict(self) | {"against": [hashlib.sha256(m).hexdigest() for m in manifests]}
        del found["folder"]
        return found


def with_dedup(pipeline: Pipeline, dedup: Dedup) -> Pipeline:
    """The pipeline with a stage and a barrier behind its last stage; unchanged where no kind is named."""
    if not dedup.kinds:
        return pipeline
    columns = ("key", *(PREFIX + kind for kind in dedup.kinds))
    barrier = Barrier(
        STAGE,
        partial(plan, dedup),
        partial(apply, dedup),
        reasons=REASONS,
        columns=columns,
        beside=tuple(
            Beside(DatasetSource((root,)), EarlierSignatures(_name(root), dedup.kinds))
            for root in dedup.against
        ),
    )
    stages = (*pipeline.stages, Stage(SIGNATURE_STAGE, (Signatures(dedup.kinds),)), barrier)
    config = {**pipeline.config, "dedup": dedup.config}
    return replace(pipeline, stages=stages, config=config)


@dataclass(frozen=True)
class EarlierSignatures:
    """Transform: the keys of a finished dataset, with its name in front, and the signatures of its samples."""

    name: str
    kinds: tuple[str, ...]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Nothing else of the samples."""
        keys = [f"{self.name}/{key}" for key in table["key"].to_pylist()]
        made = {PREFIX + kind: signature_column(table, kind) for kind in self.kinds}
        return pa.table({"key": pa.array(keys, pa.string()), **made})


def _name(root: str) -> str:
    return root.rstrip("/").rpartition("/")[2]


def plan(dedup: Dedup, tables: Iterable[pa.Table]) -> PerShard:
    """The duplicates of every shard, from the signatures of all of them."""
    finder = DuplicateFinder(dedup.kinds, dedup.radius, dedup.similarity, folder=dedup.folder)
    for table in tables:
        made = {kind: table[PREFIX + kind].combine_chunks() for kind in dedup.kinds}
        shard = shard_of(table) if table.schema.metadata else None  # null: of a dataset beside
        finder.add(shard, table["key"].combine_chunks(), made)
    return PerShard((shard, as_table(drops)) for shard, drops in finder.drops())


def as_table(drops: list[Drop]) -> pa.Table:
    """The duplicates of a shard: row, reason, detail."""
    return pa.table(
        {
            "row": np.array([d.row for d in drops], np.int64),
            "reason": [PREFIX + d.kind for d in drops],
            "detail": [detail_of(d) for d in drops],
        }
    )


def detail_of(drop: Drop) -> str:
    """Which sample is kept, and how near the dropped one is."""
    if drop.kind == NEAR_IMAGE:
        return f"of {drop.kept}; {drop.nearness:.0f} bits differ"
    if drop.kind == NEAR_TEXT:
        return f"of {drop.kept}; similarity {drop.nearness or 1.0:.2f}"
    return f"of {drop.kept}"


def apply(dedup: Dedup, table: pa.Table, drops: pa.Table | None) -> pa.Table:
    """The records of a shard with a reason for each duplicate, without their signatures."""
    table = table.drop_columns([PREFIX + kind for kind in dedup.kinds])
    if drops is None:
        return table
    rows: Mapping[str, list[Any]] = drops.to_pydict()
    for name in ("reason", "detail"):
        column = table[f"drop_{name}"].to_pylist()
        for row, value in zip(rows["row"], rows[name], strict=True):
            column[row] = value
        position = table.schema.get_field_index(f"drop_{name}")
        table = table.set_column(position, f"drop_{name}", pa.array(column, pa.string()))
    return table
