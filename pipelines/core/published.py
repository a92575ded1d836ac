"""Samples read back from a published dataset, wherever its tars lie."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.core.storage import Storage, read_parquet
from schemas.manifest import ShardEntry
from schemas.sample import Sample
from schemas.shard import INDEXES, SHARDS, decode_members
from schemas.tables import INDEX


def tar_of(storage: Storage, entry: ShardEntry) -> tuple[Storage, str]:
    """The storage that holds the tar of a shard, and the tar's path there."""
    if entry.path is None or not ("://" in entry.path or Path(entry.path).is_absolute()):
        return storage, entry.tar
    folder, _, name = entry.path.rpartition("/")
    return Storage(folder or "/"), name


def open_tar(storage: Storage, entry: ShardEntry) -> BinaryIO:
    """The tar of a shard, opened for reading."""
    where, path = tar_of(storage, entry)
    return where.open(path)


def decoder_of(entry: ShardEntry) -> Callable[[str, Mapping[str, bytes], str], Sample]:
    """What makes a sample of the members of a shard: `schemas.adopted` where its tar was adopted."""
    if entry.path is None:
        return decode_members
    from schemas.adopted import decode_adopted  # few datasets need it

    return decode_adopted


def read_sample(tar: BinaryIO, row: Mapping[str, Any], entry: ShardEntry) -> Sample:
    """The sample of an index row (`key`, `members`), read from its position in the open tar.

    Raises:
        SchemaError: the bytes there are not that sample.
    """
    return decoder_of(entry)(row["key"], members_of(tar, row["members"]), f"{entry.name}.tar")


def read_samples(storage: Storage, entry: ShardEntry) -> Iterator[Sample]:
    """The samples of a shard, in the order of its index."""
    with open_tar(storage, entry) as tar:
        for row in _rows(storage, entry.name):
            yield read_sample(tar, row, entry)


def read_built_samples(storage: Storage, shard: str) -> Iterator[Sample]:
    """The samples of a shard that a build wrote, by the name of the shard alone."""
    with storage.open(f"{SHARDS}/{shard}.tar") as tar:
        for row in _rows(storage, shard):
            yield decode_members(row["key"], members_of(tar, row["members"]), f"{shard}.tar")


def _rows(storage: Storage, shard: str) -> list[dict[str, Any]]:
    path = f"{INDEXES}/{shard}.parquet"
    return read_parquet(storage, path, INDEX, ("key", "members")).to_pylist()


def members_of(tar: BinaryIO, places: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """The members of an open tar at places of an index (`name`, `offset`, `size`), by suffix."""
    members = {}
    for place in places:
        tar.seek(place["offset"])
        members[place["name"]] = tar.read(place["size"])
    return members
