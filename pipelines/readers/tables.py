"""The rows of tables, CSV or Parquet by the endings of their names, as one source of records.

The shards of CSV files come first, those of Parquet files follow; no shard crosses from one to the other. Tables and
reasons are those of `pipelines.readers.csv` and `pipelines.readers.parquet`, which agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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

    def names(self) -> Sequence[str]:
        """The names of the CSV files, then those of the Parquet files."""
        return sorted(self.files.names(), key=lambda name: not name.endswith(csv.SUFFIXES))

    def look(self, name: str, limit: int | None = None) -> dict[str, Any]:
        """As the reader of the file's format does."""
        return self._of(name).look(name, limit)

    def plan_of(self, corpus: str, found: Iterator[Mapping[str, Any]]) -> list[ShardPlan]:
        """The shards of CSV files, then those of Parquet files."""
        names, left = self.names(), self.limit
        stems = self.files.key_stems(names)
        of_files = dict(zip(names, found, strict=False))
        shards: list[ShardPlan] = []
        for source, suffixes in ((self._csv, csv.SUFFIXES), (self._parquet, parquet.SUFFIXES)):
            own = [name for name in names if name.endswith(suffixes)]
            if not own or left == 0:
                continue
            chosen = replace(source, patterns=own, limit=left)
            planned = chosen.plan_of(corpus, (of_files[name] for name in own if name in of_files))
            left = None if left is None else left - sum(s.num_records or 0 for s in planned)
            for shard in planned:
                parts = tuple({**part, "stem": stems[part["file"]]} for part in shard.parts)
                shards.append(ShardPlan(shard_name(corpus, len(shards)), shard.num_records, parts))
        return shards

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard: reserved columns, wanted ones, and `extra`."""
        return self._of(shard.parts[0]["file"]).read(shard)

    def _of(self, name: str) -> CsvSource | ParquetSource:
        return self._csv if name.endswith(csv.SUFFIXES) else self._parquet

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
