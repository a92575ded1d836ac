"""What the links of dialogues lead to: images, and videos as a few frames of them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.core.pipeline import Reason
from pipelines.images.normalise import IMAGE_REASONS, ImageConfig, normalise_image
from schemas.sample import Sample

FRAME_TYPE = pa.struct(
    [
        pa.field("data", pa.large_binary()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("time_s", pa.float64()),
    ]
)
"""An image, or a frame of a video with its time; sizes in pixels."""


@dataclass(frozen=True)
class MediaContent:
    """Images and videos as what links lead to: the column `media` of a table, a list of `FRAME_TYPE` for each.

    An image is one frame without a time.
    """

    image: ImageConfig

    column = "media"
    accept = "image/jpeg,image/png,image/webp,video/mp4,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The frames."""
        return (pa.field("frames", pa.list_(FRAME_TYPE)),)

    @property
    def reasons(self) -> Mapping[str, Reason]:
        """Why a body is no image and no video that is kept."""
        return IMAGE_REASONS

    def convert(self, body: bytes) -> Mapping[str, Any]:
        """The frames in the form in which they are published; raises `Rejected`."""
        found = normalise_image(body, self.image)
        frame = {name: getattr(found, name) for name in ("data", "format", "width", "height")}
        return {"frames": [frame | {"time_s": None}]}

    def num_bytes(self, value: Mapping[str, Any]) -> int:
        """Bytes of the encoded frames."""
        return sum(len(frame["data"]) for frame in value["frames"])

    def published(self, sample: Sample) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The frames in a published sample, each with the slot of its link."""
        slots = sample.meta.get("image_slot") or []
        pairs = zip(slots, sample.images, strict=True)
        for slot, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            frames = []
            for _, image in group:
                sizes = {n: getattr(image, n) for n in ("format", "width", "height", "time_s")}
                frames.append({"data": image.image, **sizes})
            yield slot, {"frames": frames}
