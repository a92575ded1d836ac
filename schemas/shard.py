"""Shards: names, and the webdataset layout of samples in a tar.

A shard is named `<corpus>-<six digits or more>`; its files are `shards/<name>.tar`, `index/<name>.parquet`,
`ledger/<name>.parquet`, `features/<name>.arrow`. Version 1 of the layout:

| sample                         | members in order                                                       |
|--------------------------------|------------------------------------------------------------------------|
| one image and one text (pair)  | `<key>.jpg` (png, webp), `<key>.txt` (UTF-8), `<key>.json`             |
| everything else                | `<key>.json`, then one member an image: `<key>.0.jpg`, `<key>.1.png` … |

A pair is a sample of one image and one text without time or role, in either order. The JSON member:

| field    | meaning                                                                                |
|----------|----------------------------------------------------------------------------------------|
| schema   | `sample/1`                                                                             |
| key, corpus, meta | as in `schemas/sample.py`                                                     |
| segments | list in order: `kind`; `text`, or `member` in a pair; `member`, `width`, `height`; `time_s`, `role` |

Headers are ustar with fixed time, owner and mode: the same samples give the same bytes.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from schemas.sample import (
    SAMPLE_VERSION,
    Encoded,
    Sample,
    Segment,
    Segments,
    check_sample,
    checked_meta,
)
from schemas.tar_writer import TarWriter, members_of, row_of
from schemas.validation import SchemaError

SHARDS, INDEXES, LEDGERS, FEATURES = "shards", "index", "ledger", "features"
PARQUET = "parquet"
"""On request: the samples once more, for readers of tables."""


def shard_name(corpus: str, number: int) -> str:
    """The name of a shard, such as `mmc4-000012`."""
    assert number >= 0, number
    return f"{corpus}-{number:06d}"


def write_tar(file: BinaryIO, samples: Iterable[Sample], shard: str) -> list[dict[str, Any]]:
    """Write checked samples as a tar and return their index rows (see `schemas.tables.INDEX`)."""
    writer = TarWriter(file, shard)
    for sample in samples:
        meta = checked_meta(sample)
        scores = sample.meta.get("scores") or {}
        writer.add(sample.key, sample.corpus, _columns(sample), meta, scores)
    return writer.end()


def read_tar(file: BinaryIO, name: str = "tar") -> Iterator[Sample]:
    """Yield the samples of a tar in order; raises `SchemaError` naming the file and the member."""
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for info in tar:
                stem, _, suffix = info.name.partition(".")
                if key is not None and stem != key:
                    yield decode_members(key, members, name)
                    members = {}
                key = stem
                handle = tar.extractfile(info)
                if handle is None or suffix in members:
                    raise SchemaError(f"{name}: member '{info.name}' is doubled or not a file")
                members[suffix] = handle.read()
    except tarfile.TarError as error:
        raise SchemaError(f"{name}: not a whole tar file: {error}") from error
    if key is not None:
        yield decode_members(key, members, name)


def encode_members(sample: Sample) -> list[tuple[str, Encoded]]:
    """The tar members of a sample as (suffix, bytes), in the order of the layout; raises as `check_sample`."""
    return members_of(sample.key, sample.corpus, _columns(sample), checked_meta(sample))


def _columns(sample: Sample) -> Segments:
    segments, images = sample.segments, sample.images
    return Segments(
        is_image=[s.kind == "image" for s in segments],
        times=[None if s.time_s is None else _number(s.time_s) for s in segments],
        roles=[s.role for s in segments],
        texts=[s.text or "" for s in segments if s.kind == "text"],
        images=[s.image or b"" for s in images],
        formats=[s.format or "" for s in images],
        widths=[s.width or 0 for s in images],
        heights=[s.height or 0 for s in images],
    )


def _number(value: float) -> float:
    """A number as JSON has it; those of NumPy and true or false print otherwise."""
    return float(value) if isinstance(value, float) else int(value)


def decode_members(key: str, members: Mapping[str, bytes], name: str = "tar") -> Sample:
    """The sample of a key from its members by suffix; raises `SchemaError` naming what is wrong."""
    where = f"{name}: sample '{key}'"
    if "json" not in members:
        raise SchemaError(f"{where}: member '{key}.json' is missing (has {sorted(members)})")
    try:
        document = json.loads(members["json"])
        version = document["schema"]
        if version != f"sample/{SAMPLE_VERSION}":
            raise SchemaError(
                f"{where}: version '{version}', this release reads 'sample/{SAMPLE_VERSION}'"
            )
        segments = tuple(_segment(entry, members, where) for entry in document["segments"])
        found = Sample(document["key"], document["corpus"], segments, document["meta"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{where}: its JSON member is malformed: {error!r}") from error
    if found.key != key:
        raise SchemaError(f"{where}: its JSON member names the key '{found.key}'")
    return check_sample(found)


def read_members(
    data: bytes | memoryview, members: Iterable[Mapping[str, Any]]
) -> dict[str, bytes]:
    """Members by suffix, cut out of the bytes of a tar by the places that the index gives."""
    return {m["name"]: bytes(data[m["offset"] : m["offset"] + m["size"]]) for m in members}


def _segment(entry: Mapping[str, Any], members: Mapping[str, bytes], where: str) -> Segment:
    time_s, role = entry.get("time_s"), entry.get("role")
    member = entry.get("member")
    if member is not None and member not in members:
        raise SchemaError(f"{where}: member '{member}' is named in its JSON but not in the tar")
    if entry["kind"] == "image":
        suffix = str(member).rpartition(".")[2]
        return Segment.of_image(
            members[str(member)], suffix, entry["width"], entry["height"], time_s=time_s, role=role
        )
    text = members[member].decode() if member else entry["text"]
    return Segment.of_text(text, time_s=time_s, role=role)


def index_row(sample: Sample, shard: str, places: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the index (see `schemas.tables.INDEX`) of a sample whose members are at `places`."""
    scores = sample.meta.get("scores") or {}
    return row_of(sample.key, shard, _columns(sample), scores, places)


def tar_bytes(samples: Iterable[Sample], shard: str) -> tuple[bytes, list[dict[str, Any]]]:
    """A tar as bytes, with its index rows."""
    buffer = io.BytesIO()
    rows = write_tar(buffer, samples, shard)
    return buffer.getvalue(), rows
