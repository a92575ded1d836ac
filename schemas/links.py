r"""Link: one thing to fetch.

While a record is worked on it carries its links in the column `links`, a list of `LINK_TYPE`; a link
keeps its place from the parsing of the record to its row in the ledger. Version 1.

| field  | type   | meaning                                                                  |
|--------|--------|--------------------------------------------------------------------------|
| slot   | int32  | number of the link in its record, from 0; (key, slot) is unique          |
| url    | string | as written in the input, however broken                                  |
| reason | string | null while the link is alive; else the word that says why it was dropped |
| detail | string | more on the reason for a person; equal for equal responses; or null      |
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

LINK_VERSION = 1

LINK_TYPE = pa.struct(
    [
        ("slot", pa.int32()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Link:
    """One thing to fetch, and, once it is dropped, why."""

    slot: int
    url: str
    reason: str | None = None
    detail: str | None = None

    @property
    def is_alive(self) -> bool:
        """True until the link is dropped."""
        return self.reason is None

    def dropped(self, reason: str, detail: str | None = None) -> "Link":
        """The same link, dropped; the first reason stays."""
        return self if self.reason else replace(self, reason=reason, detail=detail)

    def as_row(self) -> dict[str, Any]:
        """The link as a value of `LINK_TYPE`."""
        return {name: getattr(self, name) for name in LINK_TYPE.names}


def link_from_row(row: Mapping[str, Any]) -> Link:
    """A link from a value of `LINK_TYPE`."""
    return Link(**{name: row[name] for name in LINK_TYPE.names})
