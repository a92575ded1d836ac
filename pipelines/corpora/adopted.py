"""Adopted shards: tars that exist become a dataset, without being copied.

One stage: every sample is decoded (`schemas.adopted`), its images too; what cannot be trained on is a row of the
ledger. The sink writes the index, and the manifest names where the tar lies. So features, filters, reports and exact
training work as on shards that a build wrote.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import pyarrow as pa

from pipelines.core.pipeline import RECORD_FIELDS, Filter, Pipeline, Reason, Reasons, Stage
from pipelines.core.published import members_of
from pipelines.core.storage import Storage, write_parquet
from pipelines.images.normalise import IMAGE_REASONS
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.publish.shards import HashedFile
from pipelines.readers.tars import TarSource
from schemas.adopted import AdoptError, decode_adopted
from schemas.images import ImageError, open_image
from schemas.manifest import ShardEntry
from schemas.sample import SEGMENT_TYPE, Sample, canonical_json
from schemas.shard import INDEXES, index_row
from schemas.tables import INDEX
from schemas.validation import SchemaError

REPORT = Report(title="Adopted shards", record_word="sample")
CARD = Card(
    title=REPORT.title,
    about="Samples of shards that another tool wrote; `path` in `manifest.json` says where each tar lies.",
    record_word="sample",
)
ADOPT_REASONS: Reasons = {
    **IMAGE_REASONS,
    "no_image_member": Reason("The sample has no member that is a JPEG, PNG or WebP image."),
    "video_member": Reason("A clip: `emu build webvid --media` cuts frames out of it."),
    "malformed_json": Reason("The JSON member cannot be read."),
    "not_utf8": Reason("The text is not valid UTF-8."),
    "document_malformed": Reason("The JSON member is no document of the form that it begins."),
    "sample_malformed": Reason("The members are a sample of ours, but damaged."),
}
_VIDEOS = frozenset(("mp4", "webm", "mkv", "avi", "mov"))
_INDEX_FIELDS = tuple(f for f in INDEX.schema if f.name not in ("key", "shard"))
_SCHEMA = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field("segments", pa.list_(SEGMENT_TYPE)),
        pa.field("meta", pa.string()),
        pa.field("corpus", pa.string()),
        pa.field("index", pa.struct(_INDEX_FIELDS)),
    ]
)


def pipeline(source: TarSource, corpus: str, root: str, filters: Sequence[Filter] = ()) -> Pipeline:
    """The pipeline from tars to an index of them.

    Args:
        source: the tars.
        corpus: the name of the dataset's shards.
        root: where the dataset will be; paths of tars below it are relative to it.
        filters: further reasons to drop a sample; they see segments without the bytes of images.
    """
    return Pipeline(
        corpus=corpus,
        source=source,
        stages=(Stage("check", (CheckSamples(source), *filters)),),
        sink=IndexSink(source, root),
        config={"limit": source.limit},
        finish=(REPORT, CARD),
    )


@dataclass(frozen=True)
class CheckSamples:
    """Transform: the column `members` becomes the columns of samples, with images decoded but not kept."""

    source: TarSource
    reasons: ClassVar[Reasons] = ADOPT_REASONS

    def __call__(self, table: pa.Table) -> pa.Table:
        """The samples; what cannot be trained on carries the reason."""
        rows = table.to_pylist()
        if rows:
            with self.source.files.open(rows[0]["source"]) as tar:
                rows = [self._row(tar, row) for row in rows]
        return pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(table.schema.metadata))

    def _row(self, tar: BinaryIO, row: dict[str, Any]) -> dict[str, Any]:
        places = row.pop("members")
        tar_key = row.pop("tar_key")
        if row["drop_reason"] is not None:
            return row
        shard = row["key"].rpartition("-")[0]
        try:
            sample = checked_sample(row["key"], members_of(tar, places), f"{shard}.tar")
        except AdoptError as error:
            detail = f"{tar_key}: {error.detail}" if error.detail else tar_key
            return row | {"drop_reason": error.reason, "drop_detail": detail}
        except SchemaError as error:
            return row | {"drop_reason": "sample_malformed", "drop_detail": str(error)}
        segments = [s.as_row() | {"image": None} for s in sample.segments]
        return row | {
            "segments": segments,
            "meta": canonical_json(dict(sample.meta)),
            "corpus": sample.corpus,
            "index": index_row(sample, shard, places),
        }


def checked_sample(key: str, members: Mapping[str, bytes], name: str) -> Sample:
    """The sample of members whose images can all be decoded; raises `AdoptError` or `SchemaError`."""
    try:
        sample = decode_adopted(key, members, name)
    except AdoptError as error:
        if error.reason == "no_image_member" and _VIDEOS.intersection(members):
            raise AdoptError("video_member", ", ".join(_VIDEOS.intersection(members))) from None
        raise
    for number, segment in enumerate(sample.images):
        try:
            open_image(segment.image or b"").decode()
        except ImageError as error:
            raise AdoptError(error.reason, f"image {number}: {error.detail or ''}") from None
    return sample


@dataclass(frozen=True)
class IndexSink:
    """A `Sink` that writes the index of a shard whose tar exists."""

    source: TarSource
    root: str

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        """Write the index, and hash the tar."""
        name = self.source.names[int(shard.rpartition("-")[2])]
        rows = [
            {**row["index"], "key": row["key"], "shard": shard}
            for row in table.select(["key", "index"]).to_pylist()
        ]
        hashed = self._hashed(name)
        write_parquet(storage, f"{INDEXES}/{shard}.parquet", INDEX.table(rows), INDEX)
        return ShardEntry(
            name=shard,
            num_samples=len(rows),
            num_images=sum(row["num_images"] for row in rows),
            num_bytes=hashed.num_bytes,
            sha256=hashed.digest.hexdigest(),
            path=path_from(self.root, name, self.source.base),
        )

    def _hashed(self, name: str) -> HashedFile:
        with self.source.files.open(name) as tar, Path(os.devnull).open("wb") as nowhere:
            hashed = HashedFile(cast(BinaryIO, nowhere))
            while chunk := tar.read(1 << 20):
                hashed.write(chunk)
        return hashed


def path_from(root: str, name: str, base: str) -> str:
    """The path of a tar as the manifest of a dataset in `root` names it: relative where it lies below."""
    if "://" in name:
        return name.removeprefix(f"{root}/")
    tar = Path(os.path.abspath(Path(base, Path(name).expanduser())))  # noqa: PTH100 (links stay as they are)
    if "://" not in root and tar.is_relative_to(root):
        return str(tar.relative_to(root))
    return str(tar)
