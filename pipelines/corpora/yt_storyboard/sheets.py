"""Sheets into frames: a sheet is decoded once, and its frames are cut out of the pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from pipelines.core.pipeline import Reason, Rejected
from pipelines.images.normalise import IMAGE_REASONS, ImageConfig, decode, normalise_tiles
from pipelines.storyboards.levels import Level
from pipelines.storyboards.timeline import cues_of
from schemas.image_files import lossy_webp_size
from schemas.images import ImageError, open_image
from schemas.sample import Sample

SHEET_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        **IMAGE_REASONS,
        "sheet_size_unexpected": Reason("The size of the sheet differs from that of its level."),
    }
)
"""Why a sheet gives no frames."""

FRAME_TYPE = pa.struct(
    [
        ("frame", pa.int32()),
        ("data", pa.large_binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
CUE_TYPE = pa.struct([("start_s", pa.float64()), ("text", pa.large_string())])


class Frames(NamedTuple):
    """Frames as columns of equal length: the fields of `FRAME_TYPE`."""

    numbers: Sequence[int]
    images: Sequence[bytes]
    formats: Sequence[str]
    widths: Sequence[int]
    heights: Sequence[int]


@dataclass(frozen=True)
class BodyContent:
    """What the links of a video lead to, sheets and subtitles: the column `bodies` of a table.

    | field  | type              | meaning                                                                 |
    |--------|-------------------|-------------------------------------------------------------------------|
    | slot   | int32             | number of the link in its record                                        |
    | data   | large_binary      | the file as it arrived; null for what is taken from a published dataset |
    | frames | list<FRAME_TYPE>  | frames of a sheet that are taken from a published dataset; else null    |
    | cues   | list<CUE_TYPE>    | the same for subtitles                                                  |
    """

    column = "bodies"
    is_keyed = False
    accept = "image/webp,image/jpeg,application/json,text/vtt,*/*;q=0.5"
    fields = (
        pa.field("data", pa.large_binary()),
        pa.field("frames", pa.list_(FRAME_TYPE)),
        pa.field("cues", pa.list_(CUE_TYPE)),
    )

    @property
    def reasons(self) -> Mapping[str, Reason]:
        """None: every file is kept until the next stage."""
        return {}

    def convert(self, body: bytes, key: str = "") -> Mapping[str, Any]:
        """The file; only the next stage knows whether it is a sheet or subtitles."""
        return {"data": body}

    def num_bytes(self, value: Mapping[str, Any]) -> int:
        """Bytes of a file; what was published before counts as none, so that it always fits again."""
        return len(value.get("data") or b"")

    def published(self, sample: Sample) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The frames of each sheet in a published sample, and its subtitles."""
        meta = sample.meta
        per_sheet = meta["columns"] * meta["rows"]
        by_sheet: dict[int, list[Mapping[str, Any]]] = {}
        for number, image in zip(meta["frame"], sample.images, strict=True):
            frame = {"frame": number, "data": image.image, "format": image.format}
            frame |= {"width": image.width, "height": image.height}
            by_sheet.setdefault(number // per_sheet, []).append(frame)
        for sheet, frames in by_sheet.items():
            yield sheet, {"frames": frames}
        if meta["subtitles_slot"] is not None:
            yield meta["subtitles_slot"], {"cues": list(_cues(sample))}


def _cues(sample: Sample) -> Iterator[dict[str, Any]]:
    """The subtitles as they were before those between two frames were joined."""
    texts = [s.text or "" for s in sample.segments if s.kind == "text"]
    for text, cues in zip(texts, sample.meta["text_cues"], strict=True):
        found = cues_of(text, (length for _, length in cues))
        for (start_s, _), one in zip(cues, found, strict=True):
            yield {"start_s": start_s, "text": one}


def published_frames(found: Sequence[Mapping[str, Any]]) -> Frames:
    """The frames of a sheet that are taken from a published dataset: values of `FRAME_TYPE`."""
    return Frames(*([frame[field.name] for frame in found] for field in FRAME_TYPE))


def cut_sheet(data: bytes, level: Level, sheet: int, config: ImageConfig) -> Frames:
    """The frames of a sheet; cells behind the last frame of the level are none.

    Args:
        data: a JPEG or WebP file (or any other that images may be).
        level: says how many frames the sheet has, and where.
        sheet: its number.
        config: how a frame is encoded, and the bound on the pixels of a sheet.

    Raises:
        Rejected: with a reason of `SHEET_REASONS`.
    """
    numbers = level.frames_of(sheet)
    try:
        pixels = _pixels(data, level, len(numbers), config.max_pixels)
        tiles = normalise_tiles(pixels, level.width, level.height, len(numbers), config)
        num = len(numbers)
        sizes = ([tiles.format] * num, [tiles.width] * num, [tiles.height] * num)
        return Frames(numbers, tiles.images, *sizes)
    except ImageError as error:
        raise Rejected(error.reason, error.detail) from None


def _pixels(data: bytes, level: Level, num_frames: int, max_pixels: int) -> np.ndarray:
    """Pixels (height, width, 3) of a sheet; of a lossy WebP OpenCV gives the same as Pillow, in less time."""
    size = lossy_webp_size(data)
    if size is not None and size[0] * size[1] <= max_pixels:
        _check_size(*size, level, num_frames)
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if found is not None and found.shape == (*size[::-1], 3):
            return found
    image = open_image(data, max_pixels)
    _check_size(image.width, image.height, level, num_frames)
    return decode(image, image.width, image.height)[0]


def _check_size(width: int, height: int, level: Level, num_frames: int) -> None:
    """A sheet is as wide as its columns; the last may have fewer rows, or be as narrow as its one row is short."""
    num_rows, rest = divmod(height, level.height)
    num_columns = min(num_frames, level.columns)
    is_high = rest == 0 and -(-num_frames // level.columns) <= num_rows <= level.rows
    is_wide = width in (level.columns * level.width, num_columns * level.width)
    if not (is_high and is_wide):
        whole = f"{level.columns * level.width}x{level.rows * level.height}"
        raise Rejected(
            "sheet_size_unexpected",
            f"{width}x{height}, a whole sheet of level {level.number} is {whole} for {num_frames} frames here",
        )
