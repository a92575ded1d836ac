"""The rules that a step must keep: the same rows, columns of their types, reasons of one word.

The rules for links: a step may add them and drop them, never lose, change or revive one.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.errors import StepError, StorageError
from pipelines.core.ledger import Links
from pipelines.core.pipeline import RECORD_FIELDS, Reasons

FIXED = ("key", "source", "record")
SHOWN = 5


@dataclass(frozen=True)
class Place:
    """Who is at work, where: for errors."""

    stage: str
    shard: str
    who: str
    """Such as `step 'parse'` or `the source`."""

    def error(self, problem: str) -> StepError:
        """An error that begins with the place."""
        return StepError(self.stage, self.shard, f"{self.who} {problem}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn any exception of the block into an error that begins with the place."""
        try:
            yield
        except (StepError, StorageError):
            raise
        except Exception as error:
            raise self.error(f"raised {_words(error)}") from error


def same_rows(before: pa.Table, after: pa.Table, place: Place) -> None:
    """Raise `StepError` if rows were lost, added, moved or given another key, source or number."""
    if after.num_rows != before.num_rows:
        raise place.error(
            f"returned {after.num_rows} rows for {before.num_rows}; a step keeps every row and "
            "sets drop_reason on those that cannot go on"
        )
    for name in FIXED:
        if name not in after.column_names:
            raise place.error(f"removed the column '{name}'")
        old, new = before.column(name), after.column(name)
        if new.type != old.type:
            raise place.error(f"changed the type of '{name}' to {new.type}")
        if not new.equals(old):
            row = pc.index(pc.fill_null(pc.equal(old, new), False), pa.scalar(False)).as_py()
            changed = f"{old[row].as_py()!r} to {new[row].as_py()!r}"
            raise place.error(f"changed '{name}' of row {row}: {changed}")
    if "links" not in after.column_names and before.column("links").null_count < before.num_rows:
        raise place.error("removed the column 'links'")


def with_reserved(table: pa.Table, place: Place) -> pa.Table:
    """The table with every reserved column in its type; those that may be missing are added."""
    for wanted in RECORD_FIELDS:
        if wanted.name not in table.column_names:
            if wanted.name in FIXED:
                raise place.error(f"gave no column '{wanted.name}'")
            table = table.append_column(wanted, pa.nulls(table.num_rows, wanted.type))
        position = table.schema.get_field_index(wanted.name)
        if position < 0:
            raise place.error(
                f"gave the column '{wanted.name}' twice (it is there from the start: replace it)"
            )
        if table.schema.field(position) != wanted:
            column = _cast(table.column(position), wanted, place)
            table = table.set_column(position, wanted, column)
    return table


def all_match(
    values: pa.Array | pa.ChunkedArray,
    pattern: str,
    names: pa.Array | pa.ChunkedArray,
    place: Place,
    what: str,
) -> None:
    """Raise `StepError` with the first value that is neither null nor of the pattern."""
    good = pc.fill_null(pc.match_substring_regex(values, pattern), True)
    row = pc.index(good, pa.scalar(False)).as_py()
    if row >= 0:
        shown = f"{values[row].as_py()!r} (of {names[row].as_py()!r})"
        raise place.error(f"gave the {what} {shown}, which is not {pattern}")


def all_declared(
    words: pa.Array | pa.ChunkedArray,
    names: pa.Array | pa.ChunkedArray,
    declared: Reasons,
    place: Place,
    what: str,
) -> None:
    """Raise `StepError` with the first reason that its step does not declare, so that no ledger holds a riddle."""
    known = pa.array(list(declared), pa.string())
    good = pc.or_(pc.is_null(words), pc.is_in(words, value_set=known))
    row = pc.index(good, pa.scalar(False)).as_py()
    if row >= 0:
        shown = f"{words[row].as_py()!r} (of {names[row].as_py()!r})"
        raise place.error(
            f"gave the {what} {shown}, which is not among the reasons that it declares: {sorted(declared)}"
        )


def all_different(keys: pa.ChunkedArray, place: Place) -> None:
    """Raise `StepError` with the first keys that stand more than once."""
    if len(pc.unique(keys)) < len(keys):
        counted = pc.value_counts(keys).to_pylist()
        doubled = [c["values"] for c in counted if c["counts"] > 1][:SHOWN]
        raise place.error(f"gave the same key to several records: {doubled}")


def _cast(column: pa.ChunkedArray, wanted: pa.Field, place: Place) -> pa.ChunkedArray:
    problem = f"gave '{wanted.name}' as {column.type}, expected {wanted.type}"
    # Arrow would turn numbers into digits.
    if pa.types.is_string(wanted.type) and pa.types.is_primitive(column.type):
        raise place.error(problem)
    try:
        return column.cast(wanted.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise place.error(f"{problem}: {error}") from error


def _words(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (at {Path(frame.filename).name}:{frame.lineno})"


def dead_before(before: pa.Table | None, after: pa.Table, place: Place) -> np.ndarray:
    """For each link after a step whether it was dropped before it; `before` is null for a source.

    Raises `StepError` naming the first link that was lost, doubled, changed or revived.
    """
    links = Links(after)
    _check_slots(links, after, place)
    was_dead = np.zeros(len(links.slot), bool)
    if before is None:
        return was_dead
    old = Links(before)
    here = _found(old, links, before, place)
    _check_unchanged(old, links, here, before, place)
    was_dead[here[old.is_dead]] = True
    return was_dead


def _check_slots(links: Links, table: pa.Table, place: Place) -> None:
    if links.slot.null_count or (len(links.slot) and pc.min(links.slot).as_py() < 0):
        raise place.error("gave a link without a slot, or with one below 0")
    code = np.sort(links.code)
    doubled = np.flatnonzero(code[1:] == code[:-1])
    if len(doubled):
        key = table.column("key")[int(code[doubled[0]] >> 32)].as_py()
        raise place.error(f"doubled a slot in the links of record '{key}'")


def _found(old: Links, new: Links, before: pa.Table, place: Place) -> np.ndarray:
    """For each old link its position among the new ones."""
    code = new.code
    order = np.argsort(code, kind="stable")
    position = np.searchsorted(code[order], old.code)
    is_there = position < len(code)
    is_there[is_there] = code[order][position[is_there]] == old.code[is_there]
    _raise_first(~is_there, old, before, place, "removed link")
    return order[position]


def _check_unchanged(
    old: Links, new: Links, here: np.ndarray, before: pa.Table, place: Place
) -> None:
    urls, reasons = new.url.take(pa.array(here)), new.reason.take(pa.array(here))
    same_url = _true(pc.equal(urls, old.url)) | (_null(urls) & _null(old.url))
    _raise_first(~same_url, old, before, place, "changed the url of link")
    revived = old.is_dead & ~_true(pc.equal(reasons, old.reason))
    _raise_first(revived, old, before, place, "revived or renamed the drop of link")


def _true(values: pa.Array) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _null(values: pa.Array) -> np.ndarray:
    return pc.is_null(values).to_numpy(zero_copy_only=False)


def _raise_first(bad: np.ndarray, links: Links, table: pa.Table, place: Place, what: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        key = table.column("key")[int(links.row[first])].as_py()
        raise place.error(f"{what} {links.slot[first].as_py()} of record '{key}'")
