"""What ledger and index know: all of one key, as lines for a terminal, and which inputs are damaged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import Reasons
from pipelines.core.published import open_tar, read_sample
from pipelines.core.storage import Storage, read_parquet
from pipelines.publish.cards import clock
from pipelines.publish.report import size
from schemas.manifest import Manifest
from schemas.sample import Sample, canonical_json
from schemas.shard import INDEXES, LEDGERS
from schemas.tables import INDEX, KEPT, LEDGER

_SHOWN_CHARACTERS, _SHOWN_SEGMENTS = 100, 12


@dataclass(frozen=True)
class Found:
    """What a dataset knows of a key."""

    shard: str
    rows: list[dict[str, Any]]
    """Of the ledger: that of the record, then those of its links."""
    index: dict[str, Any] | None = None
    """The row of the index; null for a dropped record, and so is the sample."""
    sample: Sample | None = None


def find_key(storage: Storage, manifest: Manifest, key: str) -> Found | None:
    """What is known of a record, kept or dropped; None where no ledger has it.

    Raises:
        SchemaError: a file on the way is damaged.
        OSError: a file on the way is missing.
    """
    for shard in manifest.shards:
        path = f"{LEDGERS}/{shard.name}.parquet"
        keys = read_parquet(storage, path, LEDGER, ("key",))["key"]
        if not pc.any(pc.equal(keys, key)).as_py():
            continue
        ledger = read_parquet(storage, path, LEDGER)
        rows = ledger.filter(pc.equal(ledger["key"], key)).to_pylist()
        rows.sort(key=lambda row: -1 if row["slot"] is None else row["slot"])
        index = read_parquet(storage, f"{INDEXES}/{shard.name}.parquet", INDEX)
        found = index.filter(pc.equal(index["key"], key)).to_pylist()
        if not found:
            return Found(shard.name, rows)
        with open_tar(storage, shard) as tar:
            return Found(shard.name, rows, found[0], read_sample(tar, found[0], shard))
    return None


def lines_of(found: Found, reasons: Reasons) -> Iterator[str]:
    """Everything that is known of a key; reasons with their meaning where it is known."""
    record, *links = found.rows
    yield f"key        {record['key']}"
    yield f"shard      {found.shard}"
    yield f"source     {record['source']}, record {record['record']}"
    yield f"record     {_fate(record, reasons)}"
    for link in links:
        yield f"link {link['slot']:<5} {link['url']}"
        yield f"           {_fate(link, reasons)}"
    if found.index is not None:
        index = found.index
        for member in index["members"]:
            place = f"{member['size']:,} bytes at {member['offset']:,}"
            yield f"member     {record['key']}.{member['name']}, {place}"
        length = f"{index['text_length']:,} characters"
        yield f"index      {index['num_segments']} segments, {index['num_images']} images, {length}"
        yield from (
            f"sha256     {digest}  image {i}" for i, digest in enumerate(index["image_sha256"])
        )
        yield f"sha256     {index['text_sha256']}  texts"
        yield from (f"score      {name} {value:g}" for name, value in index["scores"])
    if found.sample is not None:
        yield f"meta       {canonical_json(found.sample.meta)}"
        yield from segments_of(found.sample, None, None)


def summary_of(sample: Sample) -> Iterator[str]:
    """A sample in a few lines: its key, and its segments shortened."""
    yield f"sample     {sample.key}"
    yield from segments_of(sample, _SHOWN_SEGMENTS, _SHOWN_CHARACTERS)


def segments_of(
    sample: Sample, num_segments: int | None, num_characters: int | None
) -> Iterator[str]:
    """The segments, a line each: role, time, and the text or the size of the image; None shows all."""
    for segment in sample.segments[:num_segments]:
        marks = f"{segment.role or '':<9} " if segment.role else ""
        marks += f"{clock(segment.time_s):<8} " if segment.time_s is not None else ""
        if segment.kind == "image":
            pixels = f"{segment.width} x {segment.height}"
            yield f"  image    {marks}{segment.format}, {pixels}, {size(len(segment.image or b''))}"
        else:
            text = segment.text or ""
            is_cut = num_characters is not None and len(text) > num_characters
            yield f"  text     {marks}{text[:num_characters]!r}{'…' if is_cut else ''}"
    num_more = len(sample.segments) - len(sample.segments[:num_segments])
    if num_more:
        yield f"  …        {num_more} more segments"


def damaged_inputs(storage: Storage, manifest: Manifest, reasons: Reasons, limit: int) -> list[str]:
    """The first damaged input files by the ledger, `limit` at most, each with where it is damaged and how.

    Without damage no ledger is read.
    """
    words = [
        word for word in manifest.records.dropped if word in reasons and reasons[word].is_damage
    ]
    found: dict[str, str] = {}
    for shard in manifest.shards if words else ():
        path = f"{LEDGERS}/{shard.name}.parquet"
        columns = ("slot", "source", "record", "reason", "detail")
        rows = read_parquet(storage, path, LEDGER, columns)
        is_damage = pc.and_(pc.is_null(rows["slot"]), pc.is_in(rows["reason"], pa.array(words)))
        for row in rows.filter(is_damage).to_pylist():
            where = f"'{row['source']}' from record {row['record']} on ({row['reason']}: {row['detail']})"
            found.setdefault(row["source"], where)
            if len(found) == limit:
                return list(found.values())
    return list(found.values())


def first_link(storage: Storage, manifest: Manifest, reason: str) -> str | None:
    """The address or path of the first link that was dropped for a reason; None where it is in no ledger."""
    for shard in manifest.shards:
        rows = read_parquet(storage, f"{LEDGERS}/{shard.name}.parquet", LEDGER, ("url", "reason"))
        found = rows.filter(pc.fill_null(pc.equal(rows["reason"], reason), False))[
            "url"
        ].drop_null()
        if len(found):
            return found[0].as_py()
    return None


def _fate(row: Mapping[str, Any], reasons: Reasons) -> str:
    """Kept, or dropped where and why."""
    if row["status"] == KEPT:
        return f"kept ({row['stage']})"
    reason = reasons.get(row["reason"])
    parts = [f"dropped by {row['stage']}: {row['reason']}"]
    parts += [f"({row['detail']})"] if row["detail"] else []
    parts += [f"- {reason.meaning}"] if reason else []
    return " ".join(parts)
