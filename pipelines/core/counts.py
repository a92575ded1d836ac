"""Counts by stage and filter: how many records and links each saw, and dropped for which reason.

The form is that of the manifest's field `stages`: by label (`<stage>`, or `<stage>/<filter>`) a mapping of
`seen`, `dropped` by reason, and `links` with the same two.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.filter import Filter
from pipelines.core.ledger import RECORD_DROPPED
from pipelines.core.stage import Barrier, Stage

Counts = dict[str, Any]
READ = "read"
"""The word, in ledger and counts, for what the source itself could not read."""
READ_BOUND = 0.9


def tally(reasons: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """How often each reason occurs, by reason."""
    counted = pc.value_counts(pc.drop_null(reasons)).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def counted(
    label: str,
    records: tuple[int, Mapping[str, int]],
    links: tuple[int, Mapping[str, int]],
) -> Counts:
    """Counts of one label from what was seen and dropped of records and of links."""
    return {
        label: {
            "seen": records[0],
            "dropped": dict(records[1]),
            "links": {"seen": links[0], "dropped": dict(links[1])},
        }
    }


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Counts:
    """The sum of two nested mappings of counts."""
    total = dict(one)
    for name, value in other.items():
        if isinstance(value, Mapping):
            total[name] = merged(total.get(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def alarms(
    counts: Mapping[str, Any], stages: Sequence[Stage | Barrier], total: int, kept: int
) -> tuple[str, ...]:
    """In words, every stage and filter that dropped more than its bound over the whole dataset."""
    found = [a for label, bound in _bounds(stages) for a in _exceeded(label, bound, counts)]
    if not total:
        return ("the input holds no records",)
    if not kept:
        found.append(f"none of {total} records was kept")
    return tuple(found)


def _bounds(stages: Sequence[Stage | Barrier]) -> Iterator[tuple[str, float]]:
    yield READ, READ_BOUND
    for stage in stages:
        yield stage.name, stage.max_drop
        for step in stage.steps if isinstance(stage, Stage) else ():
            if isinstance(step, Filter):
                yield f"{stage.name}/{step.name}", step.max_drop


def _exceeded(label: str, bound: float, counts: Mapping[str, Any]) -> Iterator[str]:
    found = counts.get(label, {})
    for noun, part in (("records", found), ("links", found.get("links", {}))):
        dropped = {r: n for r, n in part.get("dropped", {}).items() if r != RECORD_DROPPED}
        seen, lost = part.get("seen", 0), sum(dropped.values())
        if lost > bound * seen:
            most = ", ".join(f"{r}: {n}" for r, n in sorted(dropped.items(), key=_by_count)[:3])
            yield f"'{label}' dropped {lost} of {seen} {noun} (bound {bound:g}); {most}"


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
