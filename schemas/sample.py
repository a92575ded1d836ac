r"""Sample, Segment and Link: what is trained on and answered with, and what is fetched to build it.

A caption pair, an MMC4 page, a clip, a conversation, a question and a served reply are all a `Sample`: a
sequence of `Segment`s, each a text or an encoded image (never pixels). Version 1.

Segment (struct `SEGMENT_TYPE` in Arrow)

| field  | type         | meaning                                                             |
|--------|--------------|---------------------------------------------------------------------|
| kind   | string       | `text` or `image`                                                   |
| text   | string       | the text; null for an image                                         |
| image  | large_binary | encoded bytes; null for a text (`binary` overflows at 2 GiB)        |
| format | string       | `jpg`, `png` or `webp`; null for a text                             |
| width  | int32        | pixels; null for a text                                             |
| height | int32        | pixels; null for a text                                             |
| time_s | float64      | time of a video frame or a subtitle in seconds; else null           |
| role   | string       | `system`, `user` or `assistant` in a dialogue; else null            |

Sample (table `SAMPLES` in Arrow)

| column   | type          | meaning                                                           |
|----------|---------------|-------------------------------------------------------------------|
| key      | string        | `[a-z0-9_-]{1,80}`; webdataset cuts a member name at its first dot |
| corpus   | string        | `[a-z0-9_]+`, such as `mmc4`                                      |
| segments | list<Segment> | at least one                                                      |
| meta     | string        | a JSON object in canonical form: sorted keys, no NaN              |

Link (struct `LINK_TYPE` in Arrow): one thing to fetch. Version 1.

During a build a record carries its links in the column `links`; a link keeps its slot from the parsing of the
record to its row in the ledger.

| field  | type   | meaning                                                                  |
|--------|--------|--------------------------------------------------------------------------|
| slot   | int32  | number of the link in its record, from 0; (key, slot) is unique          |
| url    | string | as written in the input, however broken                                  |
| reason | string | null until the link is dropped; else the word that says why             |
| detail | string | more on the reason for a person; equal for equal responses; or null      |
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from schemas.table_spec import Column, TableSpec, matches
from schemas.validation import SchemaError

LINK_VERSION = 1

LINK_TYPE = pa.struct(
    [
        ("slot", pa.int32()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Link:
    """One thing to fetch, and, once it is dropped, why."""

    slot: int
    url: str
    reason: str | None = None
    detail: str | None = None

    @property
    def is_alive(self) -> bool:
        """True until the link is dropped."""
        return self.reason is None

    def dropped(self, reason: str, detail: str | None = None) -> "Link":
        """The same link, dropped; the first reason stays."""
        return self if self.reason else replace(self, reason=reason, detail=detail)

    def as_row(self) -> dict[str, Any]:
        """The link as a value of `LINK_TYPE`."""
        return {name: getattr(self, name) for name in _LINK_FIELDS}


_LINK_FIELDS = tuple(LINK_TYPE.names)


def link_from_row(row: Mapping[str, Any]) -> Link:
    """A link from a value of `LINK_TYPE`."""
    return Link(**{name: row[name] for name in _LINK_FIELDS})


SAMPLE_VERSION = 1
KEY_PATTERN = r"^[a-z0-9_-]{1,80}$"
CORPUS_PATTERN = r"^[a-z0-9_]+$"
FORMATS = ("jpg", "png", "webp")
ROLES = ("system", "user", "assistant")

Kind = Literal["text", "image"]

SEGMENT_TYPE = pa.struct(
    [
        ("kind", pa.string()),
        ("text", pa.string()),
        ("image", pa.large_binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("time_s", pa.float64()),
        ("role", pa.string()),
    ]
)

SAMPLES = TableSpec(
    "samples",
    SAMPLE_VERSION,
    (
        Column("key", pa.string(), "name", is_valid=matches(KEY_PATTERN), rule=KEY_PATTERN),
        Column(
            "corpus", pa.string(), "corpus", is_valid=matches(CORPUS_PATTERN), rule=CORPUS_PATTERN
        ),
        Column("segments", pa.list_(SEGMENT_TYPE), "texts and images in order"),
        Column("meta", pa.string(), "JSON object"),
    ),
)


CANONICAL_META = pa.field("meta", pa.string(), metadata={b"emu.json": b"canonical"})
"""The column `meta` where every text in it is `CanonicalJson`. A column that takes its place is a field of its own."""


@dataclass(frozen=True)
class Segment:
    """One element of a sample: a text, or the encoded bytes of an image."""

    kind: Kind
    text: str | None = None
    image: bytes | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    time_s: float | None = None
    role: str | None = None

    @staticmethod
    def of_text(text: str, *, time_s: float | None = None, role: str | None = None) -> "Segment":
        """A text segment."""
        return Segment("text", text=text, time_s=time_s, role=role)

    @staticmethod
    def of_image(
        image: bytes,
        format: str,
        width: int,
        height: int,
        *,
        time_s: float | None = None,
        role: str | None = None,
    ) -> "Segment":
        """An image segment: encoded bytes, their format, and the size in pixels."""
        return Segment(
            "image",
            image=image,
            format=format,
            width=width,
            height=height,
            time_s=time_s,
            role=role,
        )

    def as_row(self) -> dict[str, Any]:
        """The segment as a value of `SEGMENT_TYPE`."""
        return {name: getattr(self, name) for name in _SEGMENT_FIELDS}


_SEGMENT_FIELDS = tuple(SEGMENT_TYPE.names)
_segment_values = itemgetter(*_SEGMENT_FIELDS)


Encoded = bytes | memoryview


class Segments(NamedTuple):
    """The segments of a sample as columns: three of all segments, one of the texts, four of the images, in order."""

    is_image: Sequence[bool]
    times: Sequence[float | None]
    roles: Sequence[str | None]
    texts: Sequence[str]
    images: Sequence[Encoded]
    formats: Sequence[str]
    widths: Sequence[int]
    heights: Sequence[int]

    @property
    def is_pair(self) -> bool:
        """One image and one text, without time or role."""
        return (
            len(self.is_image) == 2
            and len(self.images) == 1
            and self.times[0] is self.times[1] is self.roles[0] is self.roles[1] is None
        )


@dataclass(frozen=True)
class Sample:
    """A sequence of segments with a key, the corpus it is from, and JSON metadata."""

    key: str
    corpus: str
    segments: tuple[Segment, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Segment, ...]:
        """The image segments in order."""
        return tuple(s for s in self.segments if s.kind == "image")

    @property
    def text(self) -> str:
        """All texts joined by single spaces."""
        return " ".join(s.text or "" for s in self.segments if s.kind == "text")

    def as_row(self) -> dict[str, Any]:
        """The sample as a row of `SAMPLES`."""
        return {
            "key": self.key,
            "corpus": self.corpus,
            "segments": [s.as_row() for s in self.segments],
            "meta": canonical_json(self.meta),
        }


def check_sample(sample: Sample) -> Sample:
    """Return the sample, or raise `SchemaError` naming the key, the segment and the field."""
    checked_meta(sample)
    return sample


def checked_meta(sample: Sample) -> str:
    """The meta of a sample as canonical JSON; raises as `check_sample`."""
    if not isinstance(sample.key, str) or not re.fullmatch(KEY_PATTERN, sample.key):
        raise SchemaError(
            f"sample key {sample.key!r} is not {KEY_PATTERN} (lower case; no dots: webdataset cuts a "
            "member name at its first dot)"
        )
    if not isinstance(sample.corpus, str) or not re.fullmatch(CORPUS_PATTERN, sample.corpus):
        raise SchemaError(
            f"sample '{sample.key}': corpus {sample.corpus!r} is not {CORPUS_PATTERN}"
        )
    if not sample.segments:
        raise SchemaError(f"sample '{sample.key}': no segments; a sample has at least one")
    for number, segment in enumerate(sample.segments):
        problem = _problem(segment)
        if problem:
            raise SchemaError(f"sample '{sample.key}', segment {number}: {problem}")
    try:
        meta = canonical_json(sample.meta)
        if json.loads(meta) != dict(sample.meta):
            raise SchemaError(f"sample '{sample.key}': meta does not survive JSON unchanged")
    except (TypeError, ValueError) as error:
        raise SchemaError(f"sample '{sample.key}': meta is not JSON: {error}") from error
    return meta


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """A checked sample from a row of `SAMPLES`."""
    return check_sample(unchecked_sample(row))


def unchecked_sample(row: Mapping[str, Any]) -> Sample:
    """A sample from a row of `SAMPLES`, for what checks it itself."""
    segments = tuple(Segment(*_segment_values(segment)) for segment in row["segments"])
    return Sample(row["key"], row["corpus"], segments, json.loads(row["meta"]))


_CANONICAL = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
)


class CanonicalJson(str):
    """A text that `canonical_json` made: whoever holds one need not make it again to be certain of its form."""

    __slots__ = ()


def canonical_json(value: Any) -> CanonicalJson:
    """JSON with sorted keys and without spaces, NaN or infinities: equal values, equal bytes.

    The names in `value` are strings, as everywhere in this project.
    """
    return CanonicalJson(_CANONICAL.encode(value))


def _problem(segment: Segment) -> str | None:
    if segment.role is not None and segment.role not in ROLES:
        return f"role {segment.role!r} is not one of {ROLES}"
    if segment.time_s is not None and not (math.isfinite(segment.time_s) and segment.time_s >= 0):
        return f"time_s {segment.time_s!r} is not a finite number of seconds >= 0"
    if segment.kind == "text":
        return _text_problem(segment)
    if segment.kind == "image":
        return _image_problem(segment)
    return f"kind {segment.kind!r} is not 'text' or 'image'"


def _text_problem(segment: Segment) -> str | None:
    if not isinstance(segment.text, str):
        return f"text is {type(segment.text).__name__}, expected a string"
    if segment.image is not None or segment.format is not None:
        return "a text segment carries image bytes or a format"
    if segment.width is not None or segment.height is not None:
        return "a text segment carries a width or a height"
    try:
        segment.text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"text is not valid unicode: {error.reason} at {error.start}"
    return None


def _image_problem(segment: Segment) -> str | None:
    if segment.text is not None:
        return "an image segment carries a text"
    if not isinstance(segment.image, bytes) or not segment.image:
        return "image bytes are missing or empty"
    if segment.format not in FORMATS:
        return f"format {segment.format!r} is not one of {FORMATS}"
    for name in ("width", "height"):
        size = getattr(segment, name)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size < 2**31:
            return f"{name} {size!r} is not a positive number of pixels"
    return None
