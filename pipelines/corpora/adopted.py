"""Adopted shards: tars that exist become a dataset, without being copied.

One stage: every sample is decoded (`schemas.adopted`), its images too; what cannot be trained on is a row of the
ledger. The sink writes the index, and the manifest names where the tar lies. So features, filters, reports and exact
training work as on shards that a build wrote. Filters and duplicates may be added as stages: what they drop is not in
the index, and the tar stays.

Clips (`mp4 txt json`, as video2dataset writes them) are of no use to training before frames are cut out of them: a tar
that has some gives a shard of its own in `shards/`, of frames with their times and captions, as of WebVid.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import (
    RECORD_FIELDS,
    Barrier,
    Construct,
    Pipeline,
    Reason,
    Reasons,
    Rejected,
    Stage,
)
from pipelines.core.published import members_of
from pipelines.core.storage import Storage, write_parquet
from pipelines.images.normalise import IMAGE_REASONS
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.publish.shards import HashedFile, ShardSink
from pipelines.readers.tars import TarSource
from pipelines.transforms.frames import CLIP_FIELDS, VideoContent
from pipelines.transforms.samples import image_segment
from schemas.adopted import AdoptError, decode_adopted, decode_clip, is_clip
from schemas.images import ImageError, open_image
from schemas.manifest import ShardEntry
from schemas.sample import SEGMENT_TYPE, Sample, Segment, canonical_json, check_sample
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
    "no_image_member": Reason(
        "The sample has no member that is a JPEG, PNG or WebP image, or a video."
    ),
    "malformed_json": Reason("The JSON member is not JSON."),
    "nested_too_deeply": Reason("The JSON member is nested too deeply."),
    "doubled_field": Reason("The JSON member has a field twice, so its value is ambiguous."),
    "bad_unicode": Reason(
        "A text of the JSON member contains half of a surrogate pair, which is not a character."
    ),
    "not_utf8": Reason("The text, or the JSON member, is not valid UTF-8."),
    "document_malformed": Reason(
        "The JSON member starts like a document of a known form, but is malformed."
    ),
    "sample_malformed": Reason("The members are a sample of this platform, but damaged."),
}
_SEGMENT_FIELDS = [SEGMENT_TYPE.field(n) for n in range(SEGMENT_TYPE.num_fields)]
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


def pipeline(
    source: TarSource,
    corpus: str,
    root: str,
    clips: VideoContent | None = None,
    keep_images: bool = False,
) -> Pipeline:
    """The pipeline from tars to an index of them.

    Args:
        source: the tars.
        corpus: the name of the dataset's shards.
        root: where the dataset will be; paths of tars below it are relative to it.
        clips: which frames are cut out of clips, and their size.
        keep_images: whether stages that are added to it look at the bytes of images.
    """
    clips = clips or VideoContent()
    check = Construct(
        CheckSamples, (source, clips, keep_images), {**ADOPT_REASONS, **clips.reasons}
    )
    return Pipeline(
        corpus=corpus,
        source=source,
        stages=(Stage("check", (check,)),),
        sink=IndexSink(source, root),
        config={
            "limit": source.limit,
            "frames": asdict(clips.frames),
            "image": asdict(clips.image),
        },
        finish=(REPORT, CARD),
    )


def without_images_at_barriers(pipeline: Pipeline) -> Pipeline:
    """The pipeline whose stages before a barrier leave images behind: all tables wait there, which is no copy then."""
    stages = list(pipeline.stages)
    for number, (stage, following) in enumerate(pairwise(pipeline.stages)):
        if isinstance(stage, Stage) and isinstance(following, Barrier):
            stages[number] = replace(stage, steps=(*stage.steps, without_images))
    return replace(pipeline, stages=tuple(stages))


def without_images(table: pa.Table) -> pa.Table:
    """Transform: the samples without the bytes of their images, where these stay in their tar (`index` is not null)."""
    if table["index"].null_count:
        return table
    column = table["segments"].combine_chunks()
    segments = pc.list_flatten(column)
    fields = [
        pa.nulls(len(segments), f.type) if f.name == "image" else pc.struct_field(segments, f.name)
        for f in _SEGMENT_FIELDS
    ]
    ends = pc.cumulative_sum(pc.list_value_length(column))
    offsets = pa.concat_arrays([pa.array([0], ends.type), ends])
    light = pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(fields, fields=_SEGMENT_FIELDS)
    )
    position = table.schema.get_field_index("segments")
    return table.set_column(position, table.schema.field(position), light)


class CheckSamples:
    """Transform: the column `members` becomes the columns of samples, with images decoded but not kept.

    Where a tar has clips, all its samples are to be written: their images are kept, and `index` is null.
    """

    def __init__(self, source: TarSource, clips: VideoContent, keep_images: bool = False) -> None:
        self.source, self.clips, self.keep_images = source, clips, keep_images

    def __call__(self, table: pa.Table) -> pa.Table:
        """The samples; what cannot be trained on carries the reason."""
        rows = table.to_pylist()
        has_clips = any(is_clip(m["name"] for m in row["members"]) for row in rows)
        if rows:
            with self.source.files.open(rows[0]["source"]) as tar:
                rows = [self._row(tar, row, has_clips) for row in rows]
        return pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(table.schema.metadata))

    def close(self) -> None:
        """End the process of the decoder."""
        self.clips.close()

    def _row(self, tar: BinaryIO, row: dict[str, Any], has_clips: bool) -> dict[str, Any]:
        places = row.pop("members")
        tar_key = row.pop("tar_key")
        if row["drop_reason"] is not None:
            return row
        shard = row["key"].rpartition("-")[0]
        try:
            sample = self._sample(row["key"], members_of(tar, places), f"{shard}.tar")
        except (AdoptError, Rejected) as error:
            detail = f"{tar_key}: {error.detail}" if error.detail else tar_key
            return row | {"drop_reason": error.reason, "drop_detail": detail}
        except SchemaError as error:
            return row | {"drop_reason": "sample_malformed", "drop_detail": str(error)}
        dropped = {} if has_clips or self.keep_images else {"image": None}
        return row | {
            "segments": [s.as_row() | dropped for s in sample.segments],
            "meta": canonical_json(dict(sample.meta)),
            "corpus": sample.corpus,
            "index": None if has_clips else index_row(sample, shard, places),
        }

    def _sample(self, key: str, members: Mapping[str, bytes], name: str) -> Sample:
        if not is_clip(members):
            return checked_sample(key, members, name)
        video, caption, meta = decode_clip(members)
        value = self.clips.convert(members[video], key)
        segments = [replace(image_segment(f), time_s=f["time_s"]) for f in value["frames"]]
        if caption is not None:
            segments.append(Segment.of_text(caption))
        meta["clip"] = {f.name: value[f.name] for f in CLIP_FIELDS}
        return check_sample(Sample(key, name.rpartition("-")[0], tuple(segments), meta))


def checked_sample(key: str, members: Mapping[str, bytes], name: str) -> Sample:
    """The sample of members whose images can all be decoded; raises `AdoptError` or `SchemaError`."""
    sample = decode_adopted(key, members, name)
    for number, segment in enumerate(sample.images):
        try:
            open_image(segment.image or b"").decode()
        except ImageError as error:
            raise AdoptError(error.reason, f"image {number}: {error.detail or ''}") from None
    return sample


@dataclass(frozen=True)
class IndexSink:
    """A `Sink` that writes the index of a shard whose tar exists; where it has clips, a tar of their frames."""

    source: TarSource
    root: str

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        """Write the index, and hash the tar."""
        if table.num_rows and table["index"].null_count == table.num_rows:
            return ShardSink().write(shard, table, storage)
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
