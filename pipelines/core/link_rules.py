"""The rules for links: a step may add them and drop them, never lose, change or revive one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.ledger import Links
from pipelines.core.row_rules import Place


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
