"""Samples of adopted shards: tars that other tools wrote, read as they are.

A sample is the members that share a name up to its first dot, as webdataset groups them. What becomes of them, by the
first rule that fits:

| members                                       | sample                                                           |
|-----------------------------------------------|------------------------------------------------------------------|
| JSON with `schema: sample/…`                  | one of ours                                                      |
| JSON with `text_list` and `image_info`        | a document as OpenFlamingo packs MMC4: `image_base64` of each    |
|                                               | image before its sentence (`matched_text_index`)                 |
| numbered alone: `0.jpg`, `0.txt`, `1.jpg`, …  | a document or clip in the order of the numbers; of one number    |
|                                               | the text first (as Emu's storyboards and OBELICS' copies have it) |
| images, and a text                            | the images in the order of the tar, then the text                |

The text is, where it is there and not blank: `top_caption` of the JSON (of LAION-COCO, whose `.txt` is the old alt
text), the member `txt`, `caption` or `text`, then `caption`, `text`, `TEXT` of the JSON. Images: jpg, jpeg, png, webp;
their format follows from their bytes. `meta` holds the JSON's other fields under `fields`, and its numbers among
`SCORES` as `scores`.

Clips (`mp4 txt json`) are no samples before frames are cut out of them: `decode_clip` gives what is needed for that.
"""

import base64
import binascii
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from schemas import strict_json
from schemas.images import ImageError, open_image
from schemas.sample import Sample, Segment, check_sample
from schemas.shard import decode_members
from schemas.validation import SchemaError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "mov")
TEXT_SUFFIXES = ("txt", "caption", "text")
CAPTION_FIELDS = ("caption", "text", "TEXT")
SCORES = ("similarity", "punsafe", "pwatermark", "aesthetic")
_FORMATS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
_NUMBERED = re.compile(r"(?:.*[._-])?(\d+)\.(\w+)")


class AdoptError(SchemaError):
    """Members that are no sample; `reason` is a word for the ledger."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def decode_adopted(key: str, members: Mapping[str, bytes], name: str = "tar") -> Sample:
    """The sample that members of an adopted tar stand for.

    Args:
        key: of the sample in our dataset; that of the tar may be none.
        members: by suffix, in the order of the tar.
        name: of the shard's tar, such as `laion-000000.tar`; the corpus is its part before the number.

    Raises:
        AdoptError: the members are no sample.
        SchemaError: they are one of ours, but damaged.
    """
    document = _json(members.get("json", b"{}"))
    if isinstance(document, Mapping) and str(document.get("schema")).startswith("sample/"):
        ours = decode_members(str(document.get("key")), members, name)
        return Sample(key, ours.corpus, ours.segments, ours.meta)
    fields = document if isinstance(document, Mapping) else {"json": document}
    if isinstance(fields.get("text_list"), list) and isinstance(fields.get("image_info"), list):
        segments = list(_packed(fields))
        fields = {k: v for k, v in fields.items() if k not in ("text_list", "image_info")}
    else:
        segments = _numbered(members) or list(_plain(members, fields))
    if not any(s.kind == "image" for s in segments):
        raise AdoptError("no_image_member", f"members {sorted(members)}")
    return check_sample(Sample(key, name.rpartition("-")[0], tuple(segments), meta_of(fields)))


def decode_clip(members: Mapping[str, bytes]) -> tuple[str, str | None, dict[str, Any]]:
    """The suffix of the video, the caption and the `meta` of a clip (`mp4 txt json`, as video2dataset writes it).

    Raises:
        AdoptError: no member is a video, or a member cannot be read.
    """
    video = next((s for s in members if s.rpartition(".")[2] in VIDEO_SUFFIXES), None)
    if video is None:
        raise AdoptError("no_image_member", f"members {sorted(members)}")
    document = _json(members.get("json", b"{}"))
    fields = document if isinstance(document, Mapping) else {"json": document}
    return video, _caption(members, fields), meta_of(fields)


def is_clip(suffixes: Iterable[str]) -> bool:
    """Whether members of these suffixes are a clip: a video, and no image."""
    ends = {suffix.rpartition(".")[2] for suffix in suffixes}
    return bool(ends.intersection(VIDEO_SUFFIXES)) and not ends.intersection(IMAGE_SUFFIXES)


def meta_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `meta` of a sample whose JSON has these fields."""
    return {"fields": _finite(fields), "scores": _scores(fields)}


def _plain(members: Mapping[str, bytes], fields: Mapping[str, Any]) -> Iterator[Segment]:
    for suffix, data in members.items():
        if suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
            yield _image(data)
    text = _caption(members, fields)
    if text is not None:
        yield Segment.of_text(text)


def _caption(members: Mapping[str, bytes], fields: Mapping[str, Any]) -> str | None:
    found: list[Any] = [fields.get("top_caption")]
    found += [_text(members[s]) for s in TEXT_SUFFIXES if s in members]
    found += [fields.get(name) for name in CAPTION_FIELDS]
    text = next((text for text in found if isinstance(text, str) and text.strip()), None)
    return None if text is None else _unicode(text)


def _numbered(members: Mapping[str, bytes]) -> list[Segment]:
    """The segments of numbered members; none unless every image and every text has a number."""
    ends = {suffix: suffix.rpartition(".")[2] for suffix in members}
    used = [s for s, end in ends.items() if end in IMAGE_SUFFIXES or end in TEXT_SUFFIXES]
    numbers = {suffix: _NUMBERED.fullmatch(suffix) for suffix in used}
    if not used or not all(numbers.values()):
        return []
    places = {s: (int(m[1]), ends[s] in IMAGE_SUFFIXES, s) for s, m in numbers.items() if m}
    segments = []
    for suffix in sorted(used, key=places.__getitem__):
        if ends[suffix] in IMAGE_SUFFIXES:
            segments.append(_image(members[suffix]))
        elif text := _text(members[suffix]):
            segments.append(Segment.of_text(text))
    return segments


def _packed(fields: Mapping[str, Any]) -> Iterator[Segment]:
    """An MMC4 document with its images inside; those that were not downloaded have no bytes and are left out."""
    before: dict[int, list[Segment]] = {}
    for info in fields["image_info"]:
        data = info.get("image_base64") if isinstance(info, Mapping) else None
        index = info.get("matched_text_index") if isinstance(info, Mapping) else None
        if not isinstance(data, str):
            continue
        if not isinstance(index, int) or not 0 <= index < len(fields["text_list"]):
            raise AdoptError("document_malformed", f"matched_text_index is {index!r}")
        try:
            before.setdefault(index, []).append(_image(base64.b64decode(data, validate=True)))
        except binascii.Error as error:
            raise AdoptError("document_malformed", f"image_base64: {error}") from None
    for index, text in enumerate(fields["text_list"]):
        if not isinstance(text, str):
            raise AdoptError("document_malformed", f"text_list[{index}] is no string")
        yield from before.get(index, [])
        yield Segment.of_text(_unicode(text))


def _image(data: bytes) -> Segment:
    try:
        image = open_image(data)
    except ImageError as error:
        raise AdoptError(error.reason, str(error.detail or "")) from None
    if image.format not in _FORMATS:
        raise AdoptError("image_format_unsupported", image.format)
    return Segment.of_image(data, _FORMATS[image.format], image.width, image.height)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AdoptError("not_utf8", f"byte 0x{data[error.start]:02x} at {error.start}") from None


def _unicode(text: str) -> str:
    """A text out of JSON, which may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AdoptError("bad_unicode", f"{text[error.start]!a} at {error.start}") from None
    return text


def _json(data: bytes) -> Any:
    try:
        return strict_json.loads(data, tolerated=frozenset({"not_finite", "bad_unicode"}))
    except strict_json.JsonError as error:
        reason = "malformed_json" if error.reason == "number_too_long" else error.reason
        raise AdoptError(reason, str(error)[:80]) from None


def _finite(value: Any) -> Any:
    """The value as strict JSON can hold it: NaN and infinities become null, half surrogates a question mark."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_finite(str(name)): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _scores(fields: Mapping[str, Any]) -> dict[str, float]:
    found = {name.lower(): value for name, value in fields.items()}
    return {name: float(found[name]) for name in SCORES if _is_score(found.get(name))}


def _is_score(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # false for NaN
