"""Tables in storage: Arrow IPC for working shards, Parquet for ledger and index; checked, deterministic."""

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.storage import Storage
from schemas.validation import SchemaError, TableSpec, check_table


def write_arrow(
    storage: Storage, path: str, table: pa.Table, spec: TableSpec | None = None
) -> None:
    """Commit a table as an Arrow IPC file, uncompressed so that it can be memory-mapped.

    With a `spec` the table is checked first. Metadata of the schema is kept.
    """
    checked = table if spec is None else _with_metadata(check_table(table, spec), table)

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, checked.schema) as writer:
            writer.write_table(checked.combine_chunks())

    storage.commit(path, write)


def read_arrow(storage: Storage, path: str, spec: TableSpec | None = None) -> pa.Table:
    """A table from an Arrow IPC file; on a local disk its buffers are the mapped file."""
    try:
        with pa.ipc.open_file(_source(storage, path)) as reader:
            table = reader.read_all()
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{storage.address(path)}: not an Arrow file: {error}") from error
    return table if spec is None else _with_metadata(check_table(table, spec), table)


def read_arrow_schema(storage: Storage, path: str) -> pa.Schema:
    """The schema of an Arrow IPC file with its metadata, without the data."""
    with storage.open(path) as file, pa.ipc.open_file(file) as reader:
        return reader.schema


def write_parquet(
    storage: Storage,
    path: str,
    table: pa.Table,
    spec: TableSpec,
    metadata: Mapping[bytes, bytes] | None = None,
) -> None:
    """Commit a checked table as Parquet: equal tables give equal bytes with one release of Arrow.

    `metadata` is added to the metadata of the schema.
    """
    checked = check_table(table, spec)
    extra = {**(checked.schema.metadata or {}), **(metadata or {})}
    stamped = checked.replace_schema_metadata(extra).combine_chunks()

    def write(file: BinaryIO) -> None:
        pq.write_table(
            stamped, file, compression="zstd", compression_level=3, row_group_size=1 << 20
        )

    storage.commit(path, write)


def read_parquet(
    storage: Storage, path: str, spec: TableSpec, columns: Sequence[str] | None = None
) -> pa.Table:
    """A checked table from Parquet; with `columns`, only those, unchecked but for the version."""
    table = _read_parquet(storage, path, columns)
    if columns is None:
        return _named(storage, path, table, spec)
    empty = table.schema.metadata or {}
    _named(storage, path, spec.schema.empty_table().replace_schema_metadata(empty), spec)
    return table


def read_parquet_metadata(storage: Storage, path: str) -> dict[bytes, bytes]:
    """The metadata of the schema of a Parquet file, without the data."""
    with storage.open(path) as file:
        return dict(pq.read_schema(file).metadata or {})


def _read_parquet(storage: Storage, path: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        with storage.open(path) as file:
            return pq.read_table(file, columns=None if columns is None else list(columns))
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{storage.address(path)}: not a Parquet file: {error}") from error


def _named(storage: Storage, path: str, table: pa.Table, spec: TableSpec) -> pa.Table:
    try:
        return check_table(table, spec)
    except SchemaError as error:
        raise SchemaError(f"{storage.address(path)}: {error}") from error


def _with_metadata(checked: pa.Table, original: pa.Table) -> pa.Table:
    both = {**(original.schema.metadata or {}), **(checked.schema.metadata or {})}
    return checked.replace_schema_metadata(both)


def _source(storage: Storage, path: str) -> pa.NativeFile:
    if storage.is_local:
        return pa.memory_map(str(storage.local_path(path)))
    return pa.BufferReader(storage.read_bytes(path))
