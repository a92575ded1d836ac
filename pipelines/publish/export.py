"""The Parquet twin of a dataset: its samples once more as rows, for tools that read tables (`datasets`, DuckDB, Spark).

    run.extend(ParquetExport(), out)

writes `OUT/parquet/<shard>.parquet` for every shard. One row per sample, in the order of the tar:

| column | type                        | meaning                                                                       |
|--------|-----------------------------|-------------------------------------------------------------------------------|
| key    | string                      | of the sample                                                                 |
| corpus | string                      | such as `mmc4`                                                                |
| text   | string                      | the texts, with `<image>` where an image stands; joined by line feeds         |
| images | list<struct<bytes, path>>   | the encoded images in order; `datasets` decodes them                          |
| kinds  | list<string>                | of each segment in order: `text` or `image`                                   |
| texts  | list<string>                | of each segment: its text; null for an image                                  |
| times  | list<float64>               | of each segment: seconds in its video; null where there is none               |
| roles  | list<string>                | of each segment: `system`, `user` or `assistant`; null where there is none    |
| meta   | string                      | the sample's `meta`, JSON                                                     |

The metadata of the schema hold the hash of the tar that the rows were read from, so that a twin of an earlier tar is
made again, and the description of columns by which `datasets` decodes the images
(huggingface.co/docs/datasets, "Features"; releases from 4 on).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.pipeline import Resources, ShardPlan
from pipelines.core.published import read_samples
from pipelines.core.storage import Storage, read_parquet_metadata
from schemas.manifest import Manifest, ShardEntry
from schemas.sample import Sample, canonical_json
from schemas.shard import PARQUET

SOURCE_KEY = b"emu.parquet.tar_sha256"
IMAGE_PLACE = "<image>"
GROUP_ROWS, GROUP_BYTES = 1000, 64 << 20
"""Where a row group ends: it is what a reader of one row has to read, and is held in memory."""

_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_STRINGS = pa.list_(pa.string())
_COLUMNS = {
    "key": pa.string(),
    "corpus": pa.string(),
    "text": pa.large_string(),
    "images": pa.list_(_IMAGE_TYPE),
    "kinds": _STRINGS,
    "texts": pa.list_(pa.large_string()),
    "times": pa.list_(pa.float64()),
    "roles": _STRINGS,
    "meta": pa.large_string(),
}


def export_schema(source_sha256: str) -> pa.Schema:
    """The schema of a file made from the tar of this hash."""
    features = {name: _feature(type_) for name, type_ in _COLUMNS.items()}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    described = {"info": {"features": features}}
    metadata = {b"huggingface": json.dumps(described).encode(), SOURCE_KEY: source_sha256.encode()}
    return pa.schema(list(_COLUMNS.items()), metadata)


def _feature(type_: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(type_):
        return {"feature": _feature(type_.value_type), "_type": "List"}
    names = {pa.float64(): "float64"}
    return {"dtype": names.get(type_, str(type_)), "_type": "Value"}


def export_row(sample: Sample) -> dict[str, Any]:
    """The row of a sample."""
    parts = [IMAGE_PLACE if s.kind == "image" else s.text or "" for s in sample.segments]
    images = [
        {"bytes": s.image, "path": f"{sample.key}.{number}.{s.format}"}
        for number, s in enumerate(sample.images)
    ]
    return {
        "key": sample.key,
        "corpus": sample.corpus,
        "text": "\n".join(parts),
        "images": images,
        "kinds": [s.kind for s in sample.segments],
        "texts": [s.text for s in sample.segments],
        "times": [s.time_s for s in sample.segments],
        "roles": [s.role for s in sample.segments],
        "meta": canonical_json(dict(sample.meta)),
    }


@dataclass(frozen=True)
class ParquetExport:
    """The stage that adds the Parquet twin to a published dataset; see `pipelines.core.pipeline.Extension`."""

    resources: Resources = field(default_factory=Resources)

    @property
    def name(self) -> str:
        """Of the stage."""
        return "parquet"

    def admit(self, manifest: Manifest, root: str) -> Manifest:
        """The manifest as it is: a twin has no options."""
        return manifest

    def is_done(self, storage: Storage, entry: ShardEntry) -> bool:
        """Whether the twin of a shard is there, made from this tar."""
        path = parquet_path(entry.name)
        if not storage.exists(path):
            return False
        try:
            found = read_parquet_metadata(storage, path)
        except pa.ArrowInvalid:
            return False
        return found.get(SOURCE_KEY) == entry.sha256.encode()

    def open(self, storage: Storage) -> "ExportWork":
        """The work on shards."""
        return ExportWork(storage)

    def complete(self, manifest: Manifest) -> Manifest:
        """The manifest as it is: what reads a twin finds it by the card."""
        return manifest


def is_exported(storage: Storage, manifest: Manifest) -> bool:
    """Whether every shard of a dataset has its Parquet twin, made from the tar that the manifest names."""
    stage = ParquetExport()
    return bool(manifest.shards) and all(stage.is_done(storage, e) for e in manifest.shards)


class ExportWork:
    """Writes the twin of one shard after another."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def __call__(self, shard: ShardPlan) -> int:
        """Commit the twin of a shard and return its number of samples."""
        entry = ShardEntry(**shard.parts[0])

        def write(file: BinaryIO) -> int:
            return self._write(file, entry)

        return self.storage.commit(parquet_path(shard.name), write) or 0

    def close(self) -> None:
        """Nothing to release."""

    def _write(self, file: BinaryIO, entry: ShardEntry) -> int:
        num_rows, schema = 0, export_schema(entry.sha256)
        # Images are compressed already; texts are small beside them.
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            for rows in _groups(read_samples(self.storage, entry)):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                num_rows += len(rows)
        return num_rows


def parquet_path(shard: str) -> str:
    """Where the twin of a shard lies in its dataset."""
    return f"{PARQUET}/{shard}.parquet"


def _groups(samples: Iterable[Sample]) -> Iterator[list[dict[str, Any]]]:
    rows, num_bytes = [], 0
    for sample in samples:
        rows.append(export_row(sample))
        num_bytes += sum(len(s.image or b"") + len(s.text or "") for s in sample.segments)
        if len(rows) >= GROUP_ROWS or num_bytes >= GROUP_BYTES:
            yield rows
            rows, num_bytes = [], 0
    if rows:
        yield rows
