"""The columns that a corpus wants of a table, found under the names that its files give them.

Releases of one corpus name their columns in either case and with variations (`URL`, `url`); copies change their types
(`WIDTH` as float). A corpus lists what it wants as `Column`s; a file without one that is required is an error which
names the nearest column there is.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.readers.files import InputError

_SHOWN = 30
_LIKE = 0.5


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
