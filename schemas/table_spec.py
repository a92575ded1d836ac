"""The description of a table on disk, and the check of a table against it.

A `TableSpec` is the one description of a table: its columns with their Arrow types, whether a
value may be null, what a value must be, and the version. `check_table` raises a `SchemaError` that
names the table, the column and the first bad row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from schemas.validation import SchemaError, shown

VERSION_KEY = b"emu.schema"


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether null is allowed, and what every value must satisfy."""

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False
    is_valid: Callable[[pa.ChunkedArray], pa.ChunkedArray] | None = None
    """Vectorised check: values in, booleans out (null counts as valid where nullable)."""
    rule: str = ""
    """The check in words, for the error message."""


@dataclass(frozen=True)
class TableSpec:
    """The description of one table on disk: name, version, columns."""

    name: str
    version: int
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the version in its metadata."""
        fields = [pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns]
        return pa.schema(fields, metadata={VERSION_KEY: self.label.encode()})

    @property
    def label(self) -> str:
        """Name and version as written into files, such as `ledger/1`."""
        return f"{self.name}/{self.version}"

    def table(self, rows: list[dict]) -> pa.Table:
        """Rows as a checked table; a value of a wrong type is named with its column and row."""
        arrays = [_array(self, column, rows) for column in self.columns]
        return check_table(pa.Table.from_arrays(arrays, schema=self.schema), self)


def check_table(table: pa.Table, spec: TableSpec) -> pa.Table:
    """Return the table, in the column order of the spec, or raise `SchemaError`.

    Checks the version (where the table carries one), missing and unexpected columns, types, nulls and
    the rule of each column.
    """
    _check_version(table.schema, spec)
    names = {c.name for c in spec.columns}
    for column in spec.columns:
        if column.name not in table.column_names:
            raise SchemaError(f"{spec.label}: column '{column.name}' is missing")
    for name in table.column_names:
        if name not in names:
            raise SchemaError(f"{spec.label}: unexpected column '{name}' (known: {sorted(names)})")
    for column in spec.columns:
        _check_column(table.column(column.name), column, spec)
    return table.select([c.name for c in spec.columns]).cast(spec.schema)


def _check_version(schema: pa.Schema, spec: TableSpec) -> None:
    found = (schema.metadata or {}).get(VERSION_KEY)
    if found is not None and found != spec.label.encode():
        raise SchemaError(
            f"{spec.name}: file is version '{found.decode(errors='replace')}', this release reads "
            f"'{spec.label}'; use the release that wrote it, or build the dataset again"
        )


def _check_column(values: pa.ChunkedArray, column: Column, spec: TableSpec) -> None:
    if values.type != column.type:
        raise SchemaError(
            f"{spec.label}: column '{column.name}' has type {values.type}, expected {column.type}"
        )
    if not column.nullable and values.null_count:
        row = pc.index(pc.is_null(values), pa.scalar(True)).as_py()
        raise SchemaError(f"{spec.label}: column '{column.name}', row {row}: null is not allowed")
    if column.is_valid is None or not len(values):
        return
    good = pc.fill_null(column.is_valid(values), column.nullable)
    row = pc.index(good, pa.scalar(False)).as_py()
    if row >= 0:
        value = shown(values[row].as_py())
        raise SchemaError(
            f"{spec.label}: column '{column.name}', row {row}: {value} is not {column.rule}"
        )


def _array(spec: TableSpec, column: Column, rows: list[dict]) -> pa.Array:
    values = [row.get(column.name) for row in rows]
    try:
        return pa.array(values, type=column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError) as error:
        row = _first_bad(values, column.type)
        value = shown(values[row])
        raise SchemaError(
            f"{spec.label}: column '{column.name}', row {row}: {value} is not {column.type}"
        ) from error


def _first_bad(values: list, type_: pa.DataType) -> int:
    for row, value in enumerate(values):
        try:
            pa.array([value], type=type_)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError):
            return row
    return 0


def matches(pattern: str) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """A column check: every string matches the (anchored) regular expression."""
    return lambda values: pc.match_substring_regex(values, pattern)


def one_of(*words: str) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """A column check: every string is one of the words."""
    return lambda values: pc.is_in(values, value_set=pa.array(words))


def at_least(limit: float) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """A column check: every number is at least the limit."""
    return lambda values: pc.greater_equal(values, limit)
