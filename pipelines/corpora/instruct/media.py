"""What the links of dialogues lead to: images, and videos as a few frames of them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.core.pipeline import Reason
from pipelines.images.normalise import IMAGE_REASONS, ImageConfig, normalise_image
from pipelines.transforms.frames import FRAME_TYPE, VideoContent
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.sample import Sample

CLIP_FIELDS = (pa.field("decoder", pa.string()), pa.field("duration_s", pa.float64()))
"""What the meta of a sample says of a video; null for an image."""

_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_BOXES = (b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_STARTS = (b"\x1aE\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV\x01", b"OggS")


@dataclass(frozen=True)
class MediaContent:
    """Images and videos as what links lead to: the column `media` of a table.

    | field      | type               | meaning                                                            |
    |------------|--------------------|--------------------------------------------------------------------|
    | slot       | int32              | number of the link in its record                                   |
    | frames     | list of FRAME_TYPE | an image, without a time; of a video the chosen frames, with times |
    | decoder    | string             | which decoder read a video; null for an image                      |
    | duration_s | float64            | seconds of a video; null for an image                              |
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    column = "media"
    accept = "image/jpeg,image/png,image/webp,video/mp4,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"

    def __reduce__(self) -> tuple[type["MediaContent"], tuple[Any, ...]]:
        return type(self), (self.image, self.frames, self.limits)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The frames, and what is known of a video."""
        return (pa.field("frames", pa.list_(FRAME_TYPE)), *CLIP_FIELDS)

    @property
    def reasons(self) -> Mapping[str, Reason]:
        """Why a body is no image and no video that is kept."""
        return {**IMAGE_REASONS, **self._video.reasons}

    def convert(self, body: bytes, key: str = "") -> Mapping[str, Any]:
        """The frames in the form in which they are published; raises `Rejected`."""
        if is_video(body):
            found = self._video.convert(body, key)
            return {name: found[name] for name in ("frames", "decoder", "duration_s")}
        image = normalise_image(body, self.image)
        frame = {name: getattr(image, name) for name in ("data", "format", "width", "height")}
        return {"frames": [frame | {"time_s": None}], "decoder": None, "duration_s": None}

    @property
    def is_keyed(self) -> bool:
        """As of `VideoContent`."""
        return self.frames.choice == "random"

    def num_bytes(self, value: Mapping[str, Any]) -> int:
        """Bytes of the encoded frames."""
        return sum(len(frame["data"]) for frame in value["frames"])

    def published(self, sample: Sample) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The media in a published sample, each with the slot of its link."""
        slots = sample.meta.get("image_slot") or []
        clips = {clip["slot"]: clip for clip in sample.meta.get("clips") or []}
        pairs = zip(slots, sample.images, strict=True)
        for slot, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            frames = []
            for _, image in group:
                sizes = {n: getattr(image, n) for n in ("format", "width", "height", "time_s")}
                frames.append({"data": image.image, **sizes})
            clip = {f.name: clips.get(slot, {}).get(f.name) for f in CLIP_FIELDS}
            yield slot, {"frames": frames, **clip}

    def close(self) -> None:
        """End the process of the decoder."""
        self._video.close()

    @cached_property
    def _video(self) -> VideoContent:
        return VideoContent(self.frames, self.image, self.limits)


def is_video(body: bytes) -> bool:
    """Whether bytes begin as a container of video does: MP4, QuickTime, Matroska, WebM, AVI, MPEG, FLV, Ogg."""
    if body[4:8] == b"ftyp":
        return body[8:12] not in _IMAGE_BRANDS
    is_avi = body[:4] == b"RIFF" and body[8:12] == b"AVI "
    return is_avi or body[4:8] in _BOXES or body.startswith(_STARTS)
