"""The rows of Parquet files, local or remote, as a source of records.

The table of a shard has the reserved columns, those that the corpus wants (`Column`), each with the type that it wants,
and `extra` (large_string): all other columns of the row as a JSON object, under the names of the file, or null where
there are none. In `extra` numbers that are not finite are null, and times and decimals are texts; columns of bytes and
those that pandas adds for its index are left out.

Planning reads the footers alone. A shard names ranges of rows; a range is read batch by batch from the start of its row
group, and a worker keeps its files open from shard to shard, so that a row group of any size is decoded once by each
worker. In memory are one batch and, of a local file, `BUFFER_BYTES` of each column; of a remote file, the compressed
row group, since many small requests would take longer. Whatever can be wrong with a row, a row group or a whole file
is data:

- a file without a readable footer gives one record that says so;
- rows of a group behind the first damage in it give one record each, since the footer counts them;
- a text that is not UTF-8 drops its row.

Wrong columns are an error of the whole build, before anything is written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.pipeline import RECORD_FIELDS, Reason, Reasons, ShardPlan
from pipelines.readers.columns import EXTRA, ColumnSource, TableColumns
from pipelines.readers.files import InputError
from pipelines.readers.sequential import OpenReaders

SUFFIXES = (".snappy.parquet", ".parquet")
BATCH_ROWS = 1024
BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"
_MIN_BYTES = 12  # two marks and the length of the footer
_DAMAGE = (pa.ArrowException, OSError, ValueError, RuntimeError)

PARQUET_REASONS: Reasons = MappingProxyType(
    {
        "input_truncated": Reason(
            "The file is empty or ends too early; none of its rows can be read.",
            is_damage=True,
        ),
        "input_corrupt": Reason(
            "The file, or its row group from here on, cannot be decompressed.", is_damage=True
        ),
        "not_utf8": Reason("A text of the row is not valid UTF-8."),
    }
)
"""Why a row is no record."""


@dataclass(frozen=True)
class ParquetSource(ColumnSource):
    """A `Source`: the rows of the files that match, in the order of the files' names."""

    suffixes = SUFFIXES

    @property
    def reasons(self) -> Reasons:
        """Why a row is no record."""
        return PARQUET_REASONS

    def look(self, name: str, limit: int | None = None) -> dict[str, Any]:
        """The rows of a file by its footer, or one row that stands for the damaged file; raises for wrong columns."""
        with self.files.open(name) as file:
            opened = self._open(file, name)
            if isinstance(opened, Damage):
                known = {"num_rows": 1, "reason": opened.reason, "detail": opened.detail}
            else:
                TableColumns(opened.schema_arrow, self.columns, name)
                known = {"num_rows": opened.metadata.num_rows}
        return {"num_records": known["num_rows"], **known}

    def read(self, shard: ShardPlan) -> pa.Table:
        """The records of a shard: reserved columns, wanted ones, and `extra`."""
        pieces = [table for part in shard.parts for table in self._read_part(part)]
        return pa.concat_tables([self.schema.empty_table(), *pieces])

    @property
    def schema(self) -> pa.Schema:
        """Of the table of a shard."""
        wanted = [pa.field(c.name, c.type) for c in self.columns]
        return pa.schema([*RECORD_FIELDS, *wanted, pa.field(EXTRA, pa.large_string())])

    def _read_part(self, part: Mapping[str, Any]) -> Iterator[pa.Table]:
        name, first = part["file"], part["first"]
        if "reason" in part:
            yield self._table(part, first, 1, Damage(part["reason"], part["detail"]))
            return
        reader = self._open_readers.take(name, first) or self._opened(name)
        if reader.num_rows != part["num_rows"]:
            raise InputError(
                f"'{name}' has changed: it had {part['num_rows']:,} rows when the shards were planned, now "
                f"{reader.num_rows:,}; build into another folder"
            )
        for number, piece in reader.rows(first, part["num_records"]):
            num_rows = piece.num_rows
            yield self._table(part, number, num_rows, piece, reader.columns)
        if reader.next_number > reader.num_rows:
            reader.close()
        else:
            self._open_readers.keep(reader)

    def _opened(self, name: str) -> "RowReader":
        file = self.files.open(name)
        opened = self._open(file, name)
        if isinstance(opened, Damage):
            raise InputError(f"'{name}' has changed: {opened.detail}; build into another folder")
        return RowReader(name, file, opened, TableColumns(opened.schema_arrow, self.columns, name))

    def _open(self, file: BinaryIO, name: str) -> "pq.ParquetFile | Damage":
        return open_parquet(file, name, reads_ahead=not self.files.is_local(name))

    def _table(
        self,
        part: Mapping[str, Any],
        number: int,
        num_rows: int,
        piece: "pa.Table | Damage",
        columns: TableColumns | None = None,
    ) -> pa.Table:
        found = {
            "key": [f"{part['stem']}-{n:07d}" for n in range(number, number + num_rows)],
            "source": [part["file"]] * num_rows,
            "record": range(number, number + num_rows),
        }
        if isinstance(piece, Damage):
            found |= {"drop_reason": [piece.reason] * num_rows}
            found |= {"drop_detail": [piece.detail] * num_rows}
        else:
            assert columns is not None, part
            found |= columns.converted(piece)
        arrays = [
            pa.nulls(num_rows, f.type) if f.name not in found else _array(found[f.name], f.type)
            for f in self.schema
        ]
        return pa.table(arrays, schema=self.schema)

    @cached_property
    def _open_readers(self) -> "OpenReaders[RowReader]":
        return OpenReaders()


@dataclass(frozen=True)
class Damage:
    """Why rows, or a whole file, cannot be read: a word of `PARQUET_REASONS`."""

    reason: str
    detail: str
    num_rows: int = 1


def open_parquet(file: BinaryIO, name: str, reads_ahead: bool = False) -> "pq.ParquetFile | Damage":
    """The open file with its footer read, or what is wrong with it.

    With `reads_ahead` a row group is fetched as a whole, compressed, before its first row is decoded.
    """
    size = file.seek(0, 2)
    head, tail = _bytes(file, 0, 4), _bytes(file, max(size - 4, 0), 4)
    file.seek(0)
    if size and head != _MAGIC:
        return Damage("input_corrupt", f"not a Parquet file: it begins with {head!a}")
    if size < _MIN_BYTES or tail != _MAGIC:
        return Damage("input_truncated", f"{size:,} bytes without the footer of a Parquet file")
    try:
        opened = pq.ParquetFile(
            file,
            buffer_size=BUFFER_BYTES,
            pre_buffer=reads_ahead,
            page_checksum_verification=True,
        )
        sizes = _group_sizes(opened)
    except _DAMAGE as error:
        return _damage(error, name, "the footer: ")
    if sum(sizes) != opened.metadata.num_rows or any(size < 0 for size in sizes):
        return Damage("input_corrupt", "the footer: its numbers of rows do not add up")
    return opened


def _group_sizes(parquet: pq.ParquetFile) -> list[int]:
    return [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]


class RowReader:
    """The rows of an open file, given out in ranges; ranges that follow each other are decoded once.

    Args:
        name: of the file.
        file: is closed with the reader.
        parquet: the same, opened.
        columns: what is read of it.
    """

    def __init__(
        self, name: str, file: BinaryIO, parquet: pq.ParquetFile, columns: TableColumns
    ) -> None:
        self.name = name
        self.next_number = 1
        self.columns = columns
        self.num_rows: int = parquet.metadata.num_rows
        self._file = file
        self._parquet = parquet
        self._starts = list(accumulate(_group_sizes(parquet), initial=1))
        self._group = -1
        self._pieces: Iterator[pa.Table | Damage] = iter(())
        self._rest: pa.Table | Damage | None = None

    def rows(self, first: int, num_records: int) -> Iterator[tuple[int, pa.Table | Damage]]:
        """The rows from number `first` on in pieces, each with the number of its first row."""
        self._skip_to(first)
        while num_records:
            piece = self._next()
            start = min(first - self.next_number, piece.num_rows)
            taken = min(num_records, piece.num_rows - start)
            if taken:
                yield first, _slice(piece, start, taken)
            first, num_records = first + taken, num_records - taken
            self._keep(piece, start + taken)

    def close(self) -> None:
        """Close the file, and let go of the batch and the decoder, which a cycle of references would hold."""
        self._pieces, self._rest = iter(()), None
        self._parquet.close()
        self._file.close()

    def _skip_to(self, first: int) -> None:
        """Go to the row group of a row, unless it is being read."""
        group = next(g for g, start in enumerate(self._starts[1:]) if first < start)
        if group != self._group:
            self._open_group(group)

    def _open_group(self, group: int) -> None:
        self._group, self.next_number, self._rest = group, self._starts[group], None
        self._pieces = self._decoded(group)

    def _next(self) -> pa.Table | Damage:
        piece = self._rest or next(self._pieces, None)
        while piece is None:
            self._open_group(self._group + 1)
            piece = next(self._pieces, None)
        return piece

    def _keep(self, piece: pa.Table | Damage, num_used: int) -> None:
        left = piece.num_rows - num_used
        self._rest = _slice(piece, num_used, left) if left else None
        self.next_number += num_used

    def _decoded(self, group: int) -> Iterator[pa.Table | Damage]:
        left = self._starts[group + 1] - self._starts[group]
        try:
            for batch in self._parquet.iter_batches(BATCH_ROWS, [group], self.columns.names):
                taken = batch.slice(0, left)  # a damaged page may hold more than its group
                left -= taken.num_rows
                yield pa.Table.from_batches([taken])
            problem = "the row group holds fewer rows than the footer says"
            found = Damage("input_corrupt", problem)
        except _DAMAGE as error:
            found = _damage(error, self.name, f"row group {group}: ")
        if left:
            yield Damage(found.reason, found.detail, left)


def _slice(piece: pa.Table | Damage, start: int, num_rows: int) -> pa.Table | Damage:
    if isinstance(piece, Damage):
        return Damage(piece.reason, piece.detail, num_rows)
    return piece.slice(start, num_rows)


def _array(values: Any, type_: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return pa.concat_arrays(chain(values.chunks or [pa.array([], values.type)]))
    return pa.array(values, type_)


def _bytes(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _damage(error: Exception, name: str, where: str) -> Damage:
    """Damage of the data; an error of the disk or the network is raised as an `InputError`."""
    if isinstance(error, OSError) and error.errno is not None:
        raise InputError(f"'{name}': cannot be read: {error}") from error
    lines = str(error).splitlines() or [type(error).__name__]
    return Damage("input_corrupt", where + lines[0].encode("ascii", "replace").decode()[:200])
