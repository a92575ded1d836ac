"""A pipeline without its fetch: everything that is decided before, on all records or on a sample of them.

The ledger of a dry run names each record and each link: dropped for the reasons of the real build, or `not_fetched`
where the real build would fetch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pyarrow as pa

from pipelines.core.pipeline import (
    Barrier,
    Pipeline,
    Reason,
    Reasons,
    ShardPlan,
    Source,
    Stage,
)
from pipelines.transforms.fetch_links import is_fetch
from pipelines.transforms.samples import SAMPLE_FIELDS
from schemas.sample import LINK_TYPE, link_from_row

NOT_FETCHED = "not_fetched"


def without_fetch(pipeline: Pipeline) -> Pipeline:
    """The pipeline up to its fetch, where every record ends.

    Raises:
        ValueError: the pipeline fetches nothing.
    """
    before: list[Stage | Barrier] = []
    for stage in pipeline.stages:
        steps = stage.steps if isinstance(stage, Stage) else ()
        place = next((n for n, step in enumerate(steps) if is_fetch(step)), None)
        if place is not None:
            end = Stage("fetch", (*steps[:place], NotFetched()), max_drop=1.0)
            return replace(pipeline, stages=(*before, end), finish=())
        before.append(stage)
    raise ValueError(
        f"the corpus '{pipeline.corpus}' fetches nothing, so there is no dry run of it"
    )


@dataclass(frozen=True)
class NotFetched:
    """Transform: drops every record and every link that would be fetched."""

    reasons: ClassVar[Reasons] = {NOT_FETCHED: Reason("To be fetched; a dry run ends before.")}

    def __call__(self, table: pa.Table) -> pa.Table:
        """The records, all dropped, with the columns of samples."""
        links = [
            [link_from_row(link).dropped(NOT_FETCHED).as_row() for link in links or ()]
            for links in table["links"].to_pylist()
        ]
        reasons = [reason or NOT_FETCHED for reason in table["drop_reason"].to_pylist()]
        columns = {
            "links": pa.array(links, pa.list_(LINK_TYPE)),
            "drop_reason": pa.array(reasons, pa.string()),
            **{f.name: pa.nulls(table.num_rows, f.type) for f in SAMPLE_FIELDS},
        }
        for name, column in columns.items():
            place = table.schema.get_field_index(name)
            if place < 0:
                table = table.append_column(name, column)
            else:
                table = table.set_column(place, name, column)
        return table


@dataclass(frozen=True)
class SampledSource:
    """A `Source`: some shards of another one, evenly spaced."""

    source: Source
    shards: tuple[ShardPlan, ...]

    @staticmethod
    def of(source: Source, shards: Sequence[ShardPlan], num_shards: int) -> "SampledSource":
        """At most `num_shards` of the shards that the source plans."""
        count = min(num_shards, len(shards))
        places = [(2 * n + 1) * len(shards) // (2 * count) for n in range(count)]
        return SampledSource(source, tuple(shards[place] for place in places))

    @property
    def reasons(self) -> Reasons:
        """Those of the source."""
        return self.source.reasons

    def plan(self, corpus: str) -> Sequence[ShardPlan]:
        """The chosen shards."""
        return self.shards

    def read(self, shard: ShardPlan) -> pa.Table:
        """As of the source."""
        return self.source.read(shard)

    def fingerprint(self) -> str:
        """As of the source."""
        return self.source.fingerprint()
