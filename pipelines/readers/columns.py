"""The columns that a corpus wants of a table, found under the names that its files give them.

Releases of one corpus name their columns in either case and with variations (`URL`, `url`); copies change their types
(`WIDTH` as float). A corpus lists what it wants as `Column`s; a file without one that is required is an error which
names the nearest column there is.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.readers.files import FileSource, InputError

EXTRA = "extra"
"""The column of `TableColumns.converted` that holds all others, as JSON objects."""
_SHOWN = 30
_LIKE = 0.4


@dataclass(frozen=True)
class Column:
    """A column of the table that a reader gives, and where it comes from."""

    name: str
    type: pa.DataType
    aliases: tuple[str, ...] = ()
    """Names in files, in any case, the preferred one first; empty takes `name`."""
    is_required: bool = True
    """Whether a file without it is refused; else the column is null there."""
    option: str = ""
    """The option by which another column can be named, for the error."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are looked for, the preferred one first."""
        return self.aliases or (self.name,)


@dataclass(frozen=True)
class ColumnSource(FileSource):
    """The options of every `Source` of tables: those of files, and the columns that the corpus wants."""

    columns: tuple[Column, ...] = ()


def find_columns(wanted: Sequence[Column], there: Sequence[str], file: str) -> Mapping[str, str]:
    """For each wanted column that a file has, its name in the file; a name as written wins over one in another case.

    Raises:
        InputError: a required column is missing, or a name stands for two columns of the file.
    """
    found: dict[str, str] = {}
    for column in wanted:
        matches = (match for name in column.names if (match := _match(name, there, file)))
        match = next(matches, None)
        if match is not None:
            found[column.name] = match
        elif column.is_required:
            raise InputError(_missing(column, there, file))
    return found


class TableColumns:
    """What is read of a table in a file: the wanted columns, and the others that JSON can hold.

    In JSON, numbers that are not finite are null, and times and decimals are texts; columns of bytes and those that
    pandas adds for its index are left out.

    Raises:
        InputError: a wanted column is missing or of another kind.
    """

    def __init__(self, schema: pa.Schema, wanted: Sequence[Column], file: str) -> None:
        self.wanted = wanted
        self.found = find_columns(wanted, schema.names, file)
        for column in wanted:
            if column.name in self.found:
                _check_type(column, schema.field(self.found[column.name]), file)
        used = {*self.found.values()}
        others = (f for f in schema if f.name not in used)
        self.extra = [f.name for f in others if _is_kept(f)]
        self.names = [*sorted(used), *self.extra]

    def converted(self, table: pa.Table) -> dict[str, Any]:
        """The wanted columns in their types, `extra`, and the reasons of rows that cannot be read."""
        table, broken = _without_bad_text(table)
        columns: dict[str, Any] = {
            c.name: pc.cast(table[self.found[c.name]], c.type, safe=False)
            for c in self.wanted
            if c.name in self.found
        }
        if self.extra:
            columns[EXTRA] = _as_json(table.select(self.extra))
        if any(broken):
            columns["drop_reason"] = [None if b is None else "not_utf8" for b in broken]
            columns["drop_detail"] = [None if b is None else f"column '{b}'" for b in broken]
        return columns


def _match(name: str, there: Sequence[str], file: str) -> str | None:
    if there.count(name) == 1:
        return name
    same = [n for n in there if n.casefold() == name.casefold()]
    if len(same) > 1:
        raise InputError(
            f"'{file}': column '{name}' is there {len(same)} times ({', '.join(same)}); rename all but one"
        )
    return same[0] if same else None


def _missing(column: Column, there: Sequence[str], file: str) -> str:
    near = max(there, key=lambda name: _likeness(column, name), default="")
    shown = ", ".join(there[:_SHOWN]) + (", …" if len(there) > _SHOWN else "")
    hint = f"; the nearest is '{near}'" if _likeness(column, near) >= _LIKE else ""
    option = f" ({column.option} names another)" if column.option else ""
    names = " or ".join(f"'{name}'" for name in column.names)
    return f"'{file}': no column {names}{option}; there are: {shown or 'none'}{hint}"


def _likeness(column: Column, name: str) -> float:
    """From 0 to 1, how much a name resembles one of those that are looked for."""
    folded = name.casefold()
    return max(difflib.SequenceMatcher(None, n.casefold(), folded).ratio() for n in column.names)


def _check_type(column: Column, field: pa.Field, file: str) -> None:
    wanted, there = column.type, field.type
    if pa.types.is_dictionary(there):
        there = there.value_type
    if wanted in (pa.string(), pa.large_string()):
        fits, kind = _is_text(there), "text"
    elif pa.types.is_list(wanted):
        is_list = pa.types.is_list(there) or pa.types.is_large_list(there)
        fits, kind = is_list and _is_text(there.value_type), "lists of texts"
    else:
        fits, kind = pa.types.is_integer(there) or pa.types.is_floating(there), "a number"
    if not fits and not pa.types.is_null(there):
        raise InputError(f"'{file}': column '{field.name}' is {field.type}, expected {kind}")


def _is_text(type_: pa.DataType) -> bool:
    """A list of nothing but nulls has the type null in it."""
    tests = (pa.types.is_string, pa.types.is_large_string, _is_view, pa.types.is_null)
    return any(test(type_) for test in tests)


def _is_view(type_: pa.DataType) -> bool:
    return type_ == pa.string_view()


def _is_kept(field: pa.Field) -> bool:
    return not field.name.startswith("__index_level_") and _fits_json(field.type)


def _fits_json(type_: pa.DataType, is_nested: bool = False) -> bool:
    """Whether values of a type can stand in JSON; times and decimals can at the top, as texts."""
    types = pa.types
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return _fits_json(type_.value_type, True)
    if types.is_struct(type_):
        return all(_fits_json(f.type, True) for f in type_)
    if types.is_dictionary(type_):
        return _fits_json(type_.value_type, True)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    texts = (types.is_string, types.is_large_string, _is_view)
    return any(test(type_) for test in (*plain, *texts)) or (not is_nested and _is_printed(type_))


def _is_printed(type_: pa.DataType) -> bool:
    tests = (pa.types.is_temporal, pa.types.is_decimal)
    return any(test(type_) for test in tests) and not pa.types.is_interval(type_)


def _as_json(table: pa.Table) -> list[str]:
    """Each row as a JSON object with sorted keys."""
    columns = {
        name: pc.cast(table[name], pa.string()) if _is_printed(table[name].type) else table[name]
        for name in sorted(table.column_names)
    }
    values = [column.to_pylist() for column in columns.values()]
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
    return [_dumps(row) for row in rows]


def _dumps(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same with null for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value


def _without_bad_text(table: pa.Table) -> tuple[pa.Table, list[str | None]]:
    """The table with nulls for rows that hold a text which is not UTF-8, and for each such row the column."""
    bad = [name for name in table.column_names if not _is_valid(table[name])]
    broken: list[str | None] = [None] * table.num_rows
    for name in bad:
        column = table[name].combine_chunks()
        for row in range(len(column)):
            if broken[row] is None and not _is_valid(column.take(pa.array([row]))):
                broken[row] = name
    if bad:
        rows = pa.array([None if b is not None else n for n, b in enumerate(broken)], pa.int64())
        table = table.take(rows)
    return table, broken


def _is_valid(column: Any) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
