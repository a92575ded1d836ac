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

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from schemas.sample import (
    SAMPLE_VERSION,
    Sample,
    Segment,
    canonical_json,
    check_sample,
    checked_meta,
)
from schemas.validation import SchemaError

SHARDS, INDEXES, LEDGERS, FEATURES = "shards", "index", "ledger", "features"
PARQUET = "parquet"
"""On request: the samples once more, for readers of tables."""
BLOCK = tarfile.BLOCKSIZE


def shard_name(corpus: str, number: int) -> str:
    """The name of a shard, such as `mmc4-000012`."""
    assert number >= 0, number
    return f"{corpus}-{number:06d}"


def write_tar(file: BinaryIO, samples: Iterable[Sample], shard: str) -> list[dict[str, Any]]:
    """Write checked samples as a tar and return their index rows (see `schemas.tables.INDEX`)."""
    rows: list[dict[str, Any]] = []
    position = 0
    for sample in samples:
        places = []
        for suffix, data in encode_members(sample):
            header = _header(f"{sample.key}.{suffix}", len(data))
            padding = -len(data) % BLOCK
            file.write(header + data + b"\0" * padding)
            places.append({"name": suffix, "offset": position + len(header), "size": len(data)})
            position += len(header) + len(data) + padding
        rows.append(index_row(sample, shard, places))
    file.write(b"\0" * (2 * BLOCK))
    return rows


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


def encode_members(sample: Sample) -> list[tuple[str, bytes]]:
    """The tar members of a sample as (suffix, bytes), in the order of the layout; raises as `check_sample`."""
    meta = checked_meta(sample)
    if _is_pair(sample):
        image, text = sample.images[0], next(s for s in sample.segments if s.kind == "text")
        suffix = str(image.format)
        described = [_describe(s, suffix if s.kind == "image" else "txt") for s in sample.segments]
        texts = (text.text or "").encode()
        return [
            (suffix, image.image or b""),
            ("txt", texts),
            ("json", _document(sample, described, meta)),
        ]
    members: list[tuple[str, bytes]] = []
    described = []
    for segment in sample.segments:
        member = f"{len(members)}.{segment.format}" if segment.kind == "image" else None
        described.append(_describe(segment, member))
        if member:
            members.append((member, segment.image or b""))
    return [("json", _document(sample, described, meta)), *members]


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


def _is_pair(sample: Sample) -> bool:
    kinds = sorted(s.kind for s in sample.segments)
    plain = all(s.time_s is None and s.role is None for s in sample.segments)
    return kinds == ["image", "text"] and plain


def _describe(segment: Segment, member: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": segment.kind}
    if segment.kind == "image":
        entry |= {"member": member, "width": segment.width, "height": segment.height}
    elif member:
        entry["member"] = member
    else:
        entry["text"] = segment.text
    if segment.time_s is not None:
        entry["time_s"] = segment.time_s
    if segment.role is not None:
        entry["role"] = segment.role
    return entry


def _document(sample: Sample, described: list[dict[str, Any]], meta: str) -> bytes:
    """Canonical JSON, into which that of the meta is put as it is: its keys are in order."""
    before = canonical_json({"corpus": sample.corpus, "key": sample.key})
    after = canonical_json({"schema": f"sample/{SAMPLE_VERSION}", "segments": described})
    return f'{before[:-1]},"meta":{meta},{after[1:]}'.encode()


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


def _header(name: str, size: int) -> bytes:
    """As `TarInfo.tobuf` writes it; filled in here for names of up to 99 characters, in a tenth of the time."""
    if len(name) > 99 or not name.isascii() or size >= 8**11:
        return _whole_header(name, size)
    header = bytearray(_EMPTY_HEADER)
    encoded = name.encode()
    header[: len(name)] = encoded
    header[124:135] = octal = b"%011o" % size
    # The checksum counts its own field as blanks (POSIX.1-1988, ustar).
    header[148:155] = b"%06o\0" % (_EMPTY_SUM + sum(encoded) + sum(octal))
    return bytes(header)


def _whole_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


_EMPTY_HEADER = _whole_header("", 0)[:148] + b" " * 8 + _whole_header("", 0)[156:]
_EMPTY_SUM = sum(_EMPTY_HEADER) - sum(b"0" * 11)


def index_row(sample: Sample, shard: str, places: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the index (see `schemas.tables.INDEX`) of a sample whose members are at `places`."""
    texts = [s.text or "" for s in sample.segments if s.kind == "text"]
    images = sample.images
    scores = sample.meta.get("scores") or {}
    return {
        "key": sample.key,
        "shard": shard,
        "members": places,
        "num_segments": len(sample.segments),
        "num_images": len(images),
        "text_length": sum(map(len, texts)),
        "image_widths": [s.width for s in images],
        "image_heights": [s.height for s in images],
        "image_sha256": [hashlib.sha256(s.image or b"").hexdigest() for s in images],
        "text_sha256": hashlib.sha256("".join(f"{t}\0" for t in texts).encode()).hexdigest(),
        "scores": sorted((name, float(value)) for name, value in scores.items()),
    }


def tar_bytes(samples: Iterable[Sample], shard: str) -> tuple[bytes, list[dict[str, Any]]]:
    """A tar as bytes, with its index rows."""
    buffer = io.BytesIO()
    rows = write_tar(buffer, samples, shard)
    return buffer.getvalue(), rows
