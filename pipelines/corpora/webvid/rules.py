"""WebVid: clips with captions, from CSV or Parquet rows with links, or with the clips in a folder.

Stages, each from shard to shard:

| stage   | steps                                                                                            |
|---------|--------------------------------------------------------------------------------------------------|
| parse   | captions are cleaned of metadata words, each row becomes a link or a path in the media folder    |
| fetch   | clips are fetched, and decoded in a process of their own; frames are normalised as JPEG          |
| rewrite | only if a model is given: it rewrites the cleaned captions                                       |
| sample  | frames and caption become a sample                                                               |

The sample: the frames in order, each with its time, then the caption. Its `meta`:

| field          | meaning                                                                                   |
|----------------|-------------------------------------------------------------------------------------------|
| videoid, url   | of the row; `url` is the path in the media folder where the clip is from there            |
| source, record | name of the input file, without its folder, and row number in it                          |
| caption        | as written                                                                                |
| removed        | [rule, text] for each removal of `captions.CAPTION_RULES`                                 |
| rewrite_error  | why the caption was not rewritten, where it was to be                                     |
| clip           | decoder, codec, duration_s, frame_rate, num_frames, width, height, frame_index            |
| columns        | every other column of the row                                                             |
| scores         | duration_s, num_removed; rewritten (0 or 1) where captions were to be rewritten           |
"""

import json
import re
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.core.pipeline import (
    RECORD_FIELDS,
    Construct,
    Filter,
    Pipeline,
    Reason,
    Reasons,
    Rejected,
    Stage,
)
from pipelines.core.storage import Storage
from pipelines.corpora.build import Build
from pipelines.corpora.webvid.captions import clean_caption
from pipelines.corpora.webvid.rewrite import RewriteCaptions, RewriteConfig
from pipelines.images.normalise import ImageConfig
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.readers.columns import EXTRA, Column
from pipelines.readers.tables import TableSource
from pipelines.transforms.frames import CLIP_FIELDS, VideoContent
from pipelines.transforms.samples import assembled_table, image_segment, origin, parsed_table
from pipelines.videos.decode import DECODERS
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.sample import Link, Segment, canonical_json
from schemas.validation import Checked, ConfigError

CORPUS = "webvid"
READER = TableSource
"""Reads the input files: one clip per row."""
REPORT = Report(
    title="WebVid dataset",
    record_word="clip",
    score_titles={"duration_s": "Seconds of a clip", "num_removed": "Phrases removed of a caption"},
)
CARD = Card(
    title=REPORT.title,
    about="Clips: frames in order, each with its time, then the caption.",
    sources=("https://github.com/m-bain/webvid", "https://arxiv.org/abs/2104.00650"),
    licence="The clips and captions belong to their owners; WebVid was withdrawn in 2024.",
    record_word=REPORT.record_word,
    tasks=("video-text-to-text", "image-text-to-text"),
)
MAX_CAPTION = 10_000
PATH_FIELDS = ("videoid", "page_dir")
LAYOUTS = ("videos/{page_dir}/{videoid}.mp4", "{page_dir}/{videoid}.mp4", "{videoid}.mp4")
"""Of media folders: WebVid's downloader, the same without its top folder, flat."""


@dataclass(frozen=True)
class Rules(Checked):
    """What a WebVid dataset is made by, apart from its inputs: part of its fingerprint, without `limits`."""

    frames: FrameConfig = field(default_factory=FrameConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    path: str = "{page_dir}/{videoid}.mp4"
    """Where the clip of a row lies in the media folder, if there is one."""
    clean: bool = True
    """Whether captions are cleaned of metadata words."""
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            names = [
                name for _, name, _, _ in string.Formatter().parse(self.path) if name is not None
            ]
        except ValueError as error:
            raise ConfigError(f"path is {self.path!r}: {error}") from None
        if "videoid" not in names or not set(names) <= set(PATH_FIELDS):
            raise ConfigError(
                f"path is {self.path!r}, give one with {{videoid}} and nothing else than "
                f"{' and '.join(f'{{{n}}}' for n in PATH_FIELDS)} in braces"
            )


def pipeline(build: Build[TableSource], rules: Rules) -> Pipeline:
    """The pipeline from rows of metadata to published clips.

    With media, the clips lie in them at `rules.path`, and nothing is fetched.
    """
    content = VideoContent(rules.frames, rules.image, rules.limits)
    config = {**asdict(rules), "decoders": decoder_versions()}
    del config["limits"]  # so that a retry may try harder
    rewrite = () if rules.rewrite.model is None else (_rewriting(rules.rewrite),)
    has_media = build.media is not None
    stages = (
        Stage("parse", (ParseRows(rules, has_media),)),
        build.fetch_stage(content, arrived_clips()),
        *rewrite,
        Stage("sample", (make_samples,)),
    )
    source = replace(build.source, columns=wanted_columns(rules, has_media))
    return build.pipeline(CORPUS, stages, config, REPORT, CARD, source)


def _rewriting(config: RewriteConfig) -> Stage:
    return Stage("rewrite", (Construct(RewriteCaptions, (config,)),))


def wanted_columns(rules: Rules, has_media: bool) -> tuple[Column, ...]:
    """What is read of the files; what leads to the clip is required."""
    text = pa.large_string()
    return (
        Column("videoid", text, ("videoid", "video_id"), is_required=has_media),
        Column("caption", text, ("name", "caption", "text")),
        Column("page_dir", text, is_required=has_media and "{page_dir}" in rules.path),
        Column("url", text, ("contentUrl", "content_url", "url"), is_required=not has_media),
    )


def found_path(media: str | None) -> str:
    """The layout of a media folder: that of a `videos` folder, of folders like 027701_027750, else flat."""
    if media is None:
        return LAYOUTS[1]
    storage = Storage(media)
    if storage.exists("videos"):
        return LAYOUTS[0]
    has_pages = any(re.fullmatch(r"\d+_\d+", name) for name in storage.list(""))
    return LAYOUTS[1] if has_pages else LAYOUTS[2]


def decoder_versions() -> dict[str, str | None]:
    """The packages of the decoders, since others may give other pixels."""
    return {name: _version({"pyav": "av"}.get(name, name)) for name in DECODERS}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


PARSED = pa.schema(
    [
        *RECORD_FIELDS,
        *(pa.field(n, pa.large_string()) for n in ("videoid", "caption", "text", EXTRA)),
        pa.field("removed", pa.list_(pa.list_(pa.string()))),
    ]
)


@dataclass(frozen=True)
class ParseRows:
    """Transform: a row becomes a cleaned caption and one link."""

    rules: Rules
    has_media: bool = False
    reasons: ClassVar[Reasons] = {
        "caption_missing": Reason("The row has no caption."),
        "caption_too_long": Reason("The caption has more than 10,000 characters."),
        "caption_only_metadata": Reason(
            "The caption consists only of words about camera, resolution and stock use."
        ),
        "videoid_missing": Reason("The row does not give the location of its clip."),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows, each with its link."""
        return parsed_table(table, PARSED, self._parse)

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        caption = (row["caption"] or "").strip()
        if not caption:
            raise Rejected("caption_missing")
        if len(caption) > MAX_CAPTION:
            raise Rejected("caption_too_long", f"{len(caption)} characters")
        cleaned = clean_caption(caption) if self.rules.clean else None
        if cleaned is not None and not cleaned.text:
            raise Rejected("caption_only_metadata", caption[:80])
        url = self._path(row) if self.has_media else row["url"] or ""
        if url is None:
            raise Rejected("videoid_missing")
        return {
            "text": caption if cleaned is None else cleaned.text,
            "removed": [] if cleaned is None else [list(pair) for pair in cleaned.removed],
            "links": [Link(0, url).as_row()],
        }

    def _path(self, row: Mapping[str, Any]) -> str | None:
        fields = {name: (row[name] or "").strip() for name in PATH_FIELDS}
        needed = [name for name in PATH_FIELDS if f"{{{name}}}" in self.rules.path]
        return self.rules.path.format(**fields) if all(fields[n] for n in needed) else None


def arrived_clips() -> Filter:
    """A filter that keeps rows whose clip arrived and gave frames."""

    def test(table: pa.Table) -> pa.Array:
        lengths = table["clips"].combine_chunks().value_lengths().to_pylist()
        return pa.array([None if n else "no_clip" for n in lengths], pa.string())

    reason = Reason("The clip was not fetched or has no frames; see the reason of its link.")
    return Filter("arrived_clips", test, {"no_clip": reason})


def make_samples(table: pa.Table) -> pa.Table:
    """Transform: `clips` and `text` become the `segments` and `meta` of a sample."""
    return assembled_table(table, "clips", _sample)


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    clip = row["clips"][0]
    segments = [replace(image_segment(frame), time_s=frame["time_s"]) for frame in clip["frames"]]
    scores = {"duration_s": clip["duration_s"], "num_removed": float(len(row["removed"]))}
    meta = {
        "videoid": row["videoid"],
        "url": row["links"][0]["url"],
        **origin(row),
        "caption": row["caption"],
        "removed": row["removed"],
        "clip": {f.name: clip[f.name] for f in CLIP_FIELDS},
        "columns": json.loads(row[EXTRA] or "{}"),
        "scores": scores,
    }
    if "rewrite_error" in row:
        scores["rewritten"] = float(row["rewrite_error"] is None)
        meta |= {"rewrite_error": row["rewrite_error"]}
    segments.append(Segment.of_text(row["text"]))
    return row | {
        "segments": [s.as_row() for s in segments],
        "meta": canonical_json(meta),
    }
