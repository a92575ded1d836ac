"""The rows of tables, CSV or Parquet by the endings of their names, as one source of records.

The shards of CSV files come first, those of Parquet files follow; no shard crosses from one to the other. Tables and
reasons are those of `pipelines.readers.csv` and `pipelines.readers.parquet`, which agree.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from pipelines.core.pipeline import Reasons, ShardPlan
from pipelines.readers import csv, parquet
from pipelines.readers.columns import ColumnSource
from pipelines.readers.csv import CsvSource
from pipelines.readers.parquet import ParquetSource
from schemas.shard import shard_name

SUFFIXES = (*csv.SUFFIXES, *parquet.SUFFIXES)


@dataclass(frozen=True)
class TableSource(ColumnSource):
    """A `Source`: the rows of the files that match."""

    suffixes = SUFFIXES

    @property
    def reasons(self) -> Reasons:
        """Why a row is no record."""
        return {**parquet.PARQUET_REASONS, **csv.CSV_REASONS}

    def plan(self, corpus: str) -> list[ShardPlan]:
        """The shards, from reading CSV files once and the footers of Parquet files."""
        names, left = self.files.names(), self.limit
        stems = self.files.key_stems(names)
        shards: list[ShardPlan] = []
        for source, suffixes in ((self._csv, csv.SUFFIXES), (self._parquet, parquet.SUFFIXES)):
            own = [name for name in names if name.endswith(suffixes)]
            if not own or left == 0:
                continue
            planned = replace(source, patterns=own, limit=left).plan(corpus)
            left = None if left is None else left - sum(s.num_records or 0 for s in planned)
            for shard in planned:
                parts = tuple({**part, "stem": stems[part["file"]]} for part in shard.parts)
                shards.append(ShardPlan(shard_name(corpus, len(shards)), shard.num_records, parts))
        return shards

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard: reserved columns, wanted ones, and `extra`."""
        is_csv = shard.parts[0]["file"].endswith(csv.SUFFIXES)
        return (self._csv if is_csv else self._parquet).read(shard)

    @cached_property
    def _csv(self) -> CsvSource:
        return CsvSource(
            self.patterns, self.samples_per_shard, None, self.base, columns=self.columns
        )

    @cached_property
    def _parquet(self) -> ParquetSource:
        return ParquetSource(
            self.patterns, self.samples_per_shard, None, self.base, columns=self.columns
        )
