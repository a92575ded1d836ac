"""That no key stands in two shards, in bounded memory: neighbours in key order first, then in portions."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipelines.core.errors import LedgerError

PORTION = 2_000_000
"""Keys held at a time, at most about 300 MB."""


@dataclass(frozen=True)
class KeyRange:
    """First and last key of a shard, and how many it has."""

    shard: str
    first: str
    last: str
    num_keys: int


def check_unique(
    ranges: Iterable[KeyRange],
    read_keys: Callable[[str], Iterable[str]],
    portion: int = PORTION,
) -> None:
    """Raise `LedgerError` naming a key that two shards hold, and the shards.

    Keys derived from file and line give ranges that do not overlap; then nothing is read. Where ranges
    overlap, the keys of those shards are read, `portion` of them at a time.
    """
    for group in _overlapping(sorted(ranges, key=lambda r: (r.first, r.last))):
        total = sum(r.num_keys for r in group)
        num_passes = -(-total // portion)
        for number in range(num_passes):
            _check_portion(group, read_keys, number, num_passes)


def _overlapping(ranges: Sequence[KeyRange]) -> Iterator[list[KeyRange]]:
    group: list[KeyRange] = []
    last = ""
    for current in ranges:
        if group and current.first > last:
            if len(group) > 1:
                yield group
            group = []
        group.append(current)
        last = max(last, current.last)
    if len(group) > 1:
        yield group


def _check_portion(
    group: Sequence[KeyRange], read_keys: Callable[[str], Iterable[str]], number: int, total: int
) -> None:
    seen: dict[str, str] = {}
    for current in group:
        for key in read_keys(current.shard):
            if zlib.crc32(key.encode()) % total != number:
                continue
            if key in seen:
                raise LedgerError(
                    f"key '{key}' stands in shard '{seen[key]}' and in shard '{current.shard}'"
                )
            seen[key] = current.shard
