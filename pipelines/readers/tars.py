"""Tars of webdataset samples, local or remote, as a source of records: one tar is one shard, one sample one record.

The table of a shard has the reserved columns, `tar_key` (the name of the sample in the tar) and `members`
(list<name, offset, size>, as in the index): the bytes stay where they are. Members are grouped as webdataset does it
(`webdataset.tariterators.base_plus_ext`): consecutive ones of one name up to the first dot. What webdataset skips is
skipped (folders, links, names without an extension, `__…__`).

Planning opens no tar: the headers of each are read by the worker that takes its shard. What can be wrong is data: a tar
that ends in the middle, or is none, has one record more, which says so.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import RECORD_FIELDS, Reason, Reasons, ShardPlan
from pipelines.readers.files import InputFiles
from schemas.shard import shard_name
from schemas.tables import MEMBER_TYPE
from schemas.validation import Checked

SUFFIXES = (".tar",)
TAR_REASONS: Reasons = MappingProxyType(
    {
        "tar_truncated": Reason(
            "The tar ends in the middle of a member; the rest is lost.", is_damage=True
        ),
        "tar_corrupt": Reason("The file is not a tar, or is damaged from here on.", is_damage=True),
        "doubled_member": Reason("The sample has two members with the same name."),
        "doubled_key": Reason("An earlier sample of the tar has the same name."),
    }
)
"""Why a sample cannot be read."""

TAR_FIELDS = (pa.field("tar_key", pa.string()), pa.field("members", pa.list_(MEMBER_TYPE)))
_SCHEMA = pa.schema([*RECORD_FIELDS, *TAR_FIELDS])
_SKIPPED = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class TarRecord:
    """The members of one sample, or why there are none."""

    key: str
    members: tuple[Mapping[str, Any], ...] = ()
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class TarSource(Checked):
    """A `Source` of the samples of tars."""

    patterns: Sequence[str]
    """Paths, quoted patterns or addresses of tars."""
    base: str = "."
    """Folder that relative patterns are relative to."""
    hash_inputs: bool = False
    """Recognise inputs by their contents, not by size and time."""
    limit: Annotated[int, Field(ge=1, description="None takes all tars")] | None = None
    """Tars to take at most."""

    @property
    def reasons(self) -> Reasons:
        """Why a sample cannot be read."""
        return TAR_REASONS

    @cached_property
    def files(self) -> InputFiles:
        """The tars."""
        return InputFiles(self.patterns, SUFFIXES, self.base)

    @cached_property
    def names(self) -> Sequence[str]:
        """The names of the tars, in the order of the shards."""
        return self.files.names()[: self.limit]

    def plan(self, corpus: str) -> Sequence[ShardPlan]:
        """One shard for each tar; which samples it has, its worker finds."""
        return [
            ShardPlan(shard_name(corpus, n), None, ({"file": name},))
            for n, name in enumerate(self.names)
        ]

    def read(self, shard: ShardPlan) -> pa.Table:
        """The samples of a tar; keys are made of the name of the shard and the number of the sample."""
        name = shard.parts[0]["file"]
        rows = [
            {
                "key": f"{shard.name}-{number:06d}",
                "source": name,
                "record": number,
                "tar_key": record.key,
                "members": list(record.members),
                "drop_reason": record.reason,
                "drop_detail": record.detail,
            }
            for number, record in enumerate(self._records(name), 1)
        ]
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def fingerprint(self) -> str:
        """A hash of the names and versions (or contents) of the tars."""
        return self.files.fingerprint(self.hash_inputs)

    def _records(self, name: str) -> list[TarRecord]:
        with self.files.open(name) as file:
            return list(_without_doubles(read_records(file)))


def read_records(file: BinaryIO) -> Iterator[TarRecord]:
    """The samples of an open tar, in order, from its headers; the last says where it is damaged, if it is."""
    key, members = "", []
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    damage: TarRecord | None = None
    for info in _headers(file):
        if isinstance(info, TarRecord):
            damage = info
            break
        # bytes that are no UTF-8 are shown, so that the ledger can hold the name
        name = info.name.encode("utf-8", "backslashreplace").decode()
        stem, suffix = _split(name)
        if not info.isreg() or stem is None or suffix is None or _SKIPPED.match(name):
            continue
        if stem != key:
            if members:
                yield _record(key, members)
            key, members = stem, []
        if info.offset_data + info.size > size:
            members = []
            damage = TarRecord(key, reason="tar_truncated", detail=f"in member '{name}'")
            break
        members.append({"name": suffix, "offset": info.offset_data, "size": info.size})
    if members:
        yield _record(key, members)
    if damage is not None:
        yield damage


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo | TarRecord]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue] (it would keep all headers)
                yield info
            damage = _damage_at(file, tar.offset)
    except (tarfile.TarError, EOFError, ValueError) as error:
        damage = TarRecord("", reason="tar_corrupt", detail=str(error))
    if damage is not None:
        yield damage


def _damage_at(file: BinaryIO, offset: int) -> TarRecord | None:
    """What is wrong where `tarfile` stopped: behind the first header it takes everything unreadable for the end."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return TarRecord("", reason="tar_truncated", detail=f"no end mark at byte {offset}")
    if any(block):
        return TarRecord("", reason="tar_corrupt", detail=f"no header at byte {offset}")
    return None


def _split(name: str) -> tuple[str | None, str | None]:
    from webdataset.tariterators import base_plus_ext  # its import takes a second

    stem, suffix = base_plus_ext(name)
    return stem, suffix.lower() if suffix else None


def _record(key: str, members: list[Mapping[str, Any]]) -> TarRecord:
    names = [m["name"] for m in members]
    doubled = next((n for n in names if names.count(n) > 1), None)
    if doubled is not None:
        return TarRecord(key, (), "doubled_member", f"'{doubled}' of '{key}'")
    return TarRecord(key, tuple(members))


def _without_doubles(records: Iterator[TarRecord]) -> Iterator[TarRecord]:
    seen: set[str] = set()
    for record in records:
        if record.reason is None and record.key in seen:
            yield TarRecord(record.key, (), "doubled_key", f"'{record.key}'")
        else:
            yield record
        seen.add(record.key)
