"""The links of a table, flattened, and what a step makes of them: values beside them, reasons in them.

A record has few links, and a shard thousands: a link is an entry of each of a few lists here, not an object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.core.contracts import Links
from pipelines.nested_columns import column_of, in_lists
from schemas.sample import LINK_TYPE

Drop = tuple[str, str | None]
"""Reason and detail."""


@dataclass(frozen=True)
class LinkColumns:
    """For each link of a table, in order: its row, slot, address, and the reason why it is dropped, if it is."""

    num_rows: int
    arrays: Links
    rows: list[int]
    slots: list[int]
    urls: list[str | None]
    reasons: list[str | None]

    @classmethod
    def of(cls, table: pa.Table) -> "LinkColumns":
        """The links of a table."""
        found = Links(table)
        names = (found.slot.to_pylist(), found.url.to_pylist(), found.reason.to_pylist())
        return cls(table.num_rows, found, found.row.tolist(), *names)

    def listed(
        self, values: Sequence[Mapping[str, Any] | None], fields: Sequence[pa.Field]
    ) -> pa.Array:
        """For each row the list of the values of its links, as structs of `slot` and `fields`.

        Args:
            values: of each link its value, or None; a field that one leaves out is null.
            fields: the fields of a value.
        """
        present = [n for n, value in enumerate(values) if value is not None]
        found = [value for value in values if value is not None]
        slots = pa.array([self.slots[n] for n in present], pa.int32())
        columns = (column_of([v.get(f.name) for v in found], f.type) for f in fields)
        structs = pa.StructArray.from_arrays(
            [slots, *columns], fields=[pa.field("slot", pa.int32()), *fields]
        )
        return self._in_rows(structs, [self.rows[n] for n in present])

    def marked(self, table: pa.Table, dropped: Mapping[int, Drop]) -> pa.Table:
        """The table, of which these are the links, with the reasons of those dropped now; by number of the link."""
        if not dropped:
            return table
        reasons, details = list(self.reasons), self.arrays.detail.to_pylist()
        for number, (reason, detail) in dropped.items():
            reasons[number], details[number] = reason, detail
        columns = [self.arrays.slot, self.arrays.url]
        columns += [pa.array(reasons, pa.string()), pa.array(details, pa.string())]
        links = pa.StructArray.from_arrays(columns, fields=list(LINK_TYPE))
        index = table.schema.get_field_index("links")
        return table.set_column(index, "links", self._in_rows(links, self.rows))

    def _in_rows(self, values: pa.Array, rows: Sequence[int]) -> pa.Array:
        counts = np.bincount(np.asarray(rows, np.int64), minlength=self.num_rows)
        return in_lists(values, counts)
