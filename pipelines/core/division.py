"""Division of records: a step may turn a record into several, its parts (a long video into sequences, for example).

A step that does so stands in its stage as `Divide(step)`. Its rules, beside those of every step:

- The parts of a record stand together, in the order of the records; every record has at least one. A record that the
  step leaves whole, or drops, keeps its key.
- A part has the `source` and `record` of what it is a part of; its key is that key, a hyphen and more.
- Every link of the record belongs to exactly one part, so that it stands in the ledger once.

From there on the parts are the records: they are counted, dropped and published one by one, and links that were dropped
before are in the ledger under their part. Input records are counted by `source` and `record` (decision 0087).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.core.contracts import FIXED, ErrorContext, all_different, all_match
from pipelines.core.pipeline import Reasons, Transform, reasons_of
from schemas.sample import KEY_PATTERN, LINK_TYPE


@dataclass(frozen=True)
class Divide:
    """A transform that may turn a record into several; see the rules above."""

    divide: Transform

    @property
    def name(self) -> str:
        """Of the transform, in errors."""
        return getattr(self.divide, "__name__", type(self.divide).__name__)

    @property
    def reasons(self) -> Reasons:
        """The reasons that the transform declares."""
        return reasons_of(self.divide)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The parts."""
        return self.divide(table)


def as_parts(before: pa.Table, after: pa.Table, context: ErrorContext) -> pa.Table:
    """Keys and links before a division with a row for each part: those of its record, of the links those that it holds.

    Raises:
        StepError: a record or link was lost, added or doubled, or a part has another key than its record allows.
    """
    parents = _parents(before, after, context)
    keys, names = after.column("key"), before.column("key").take(pa.array(parents, pa.int64()))
    _check_keys(names.to_pylist(), keys.to_pylist(), parents, context)
    all_match(keys, KEY_PATTERN, keys, context, "key")
    all_different(keys, context)
    links = _held_links(before, after, parents, context)
    return pa.table({"key": names, "links": links})


def under_parts(ledger: pa.Table, before: pa.Table, after: pa.Table) -> pa.Table:
    """The ledger with the links of records that were divided under the keys of the parts that hold them.

    Args:
        ledger: of the shard so far.
        before: of `as_parts`.
        after: the parts.
    """
    part_of = {
        (name, link["slot"]): key
        for name, key, links in zip(
            before.column("key").to_pylist(),
            after.column("key").to_pylist(),
            _links(after),
            strict=True,
        )
        for link in links or ()
        if name != key
    }
    if not part_of:
        return ledger
    pairs = zip(ledger.column("key").to_pylist(), ledger.column("slot").to_pylist(), strict=True)
    keys = [part_of.get((key, slot), key) for key, slot in pairs]
    position = ledger.schema.get_field_index("key")
    return ledger.set_column(position, ledger.schema.field(position), pa.array(keys, pa.string()))


def _parents(before: pa.Table, after: pa.Table, context: ErrorContext) -> list[int]:
    """For each part the row of its record."""
    for name in FIXED:
        if name not in after.column_names:
            raise context.error(f"removed the column '{name}'")
        if after.schema.field(name).type != before.schema.field(name).type:
            raise context.error(f"changed the type of '{name}'")
    identities = _identities(before)
    row_of = {identity: row for row, identity in enumerate(identities)}
    if len(row_of) < len(identities):
        raise context.error("divides records that were divided before")
    parents = [row_of.get(identity, -1) for identity in _identities(after)]
    if -1 in parents:
        made_up = after.column("key")[parents.index(-1)].as_py()
        raise context.error(f"returned '{made_up}', whose source and record are those of no record")
    if sorted(parents) != parents:
        raise context.error("moved records; parts stand together, in the order of the records")
    lost = sorted(set(range(before.num_rows)) - set(parents))
    if lost:
        raise context.error(f"lost record '{before.column('key')[lost[0]].as_py()}'")
    return parents


def _identities(table: pa.Table) -> list[tuple[Any, Any]]:
    columns = (table.column(name).to_pylist() for name in ("source", "record"))
    return list(zip(*columns, strict=True))


def _check_keys(
    names: list[str], keys: list[str], parents: list[int], context: ErrorContext
) -> None:
    num_parts = Counter(parents)
    for parent, name, key in zip(parents, names, keys, strict=True):
        is_whole = key == name and num_parts[parent] == 1
        if not is_whole and not str(key).startswith(f"{name}-"):
            raise context.error(
                f"gave a part of record '{name}' the key '{key}'; it is '{name}-' and more"
            )


def _held_links(
    before: pa.Table, after: pa.Table, parents: list[int], context: ErrorContext
) -> pa.Array:
    """For each part the links of its record, as they were, that it holds."""
    if "links" not in after.column_names:
        raise context.error("removed the column 'links'")
    left = [{link["slot"]: link for link in links or ()} for links in _links(before)]
    held: list[list[Any]] = []
    for parent, links in zip(parents, _links(after), strict=True):
        slots = [link["slot"] for link in links or ()]
        missing = [slot for slot in slots if slot not in left[parent]]
        if missing:
            key = before.column("key")[parent].as_py()
            raise context.error(
                f"added link {missing[0]} to record '{key}', or gave it to two parts"
            )
        held.append([left[parent].pop(slot) for slot in slots])
    for row, links in enumerate(left):
        if links:
            key = before.column("key")[row].as_py()
            raise context.error(f"removed link {min(links)} of record '{key}'")
    return pa.array(held, pa.list_(LINK_TYPE))


def _links(table: pa.Table) -> list[Any]:
    return table.column("links").to_pylist()
