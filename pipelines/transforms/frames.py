"""Clips as what links lead to: the chosen frames as images, decoded in a process of their own.

`VideoContent` is the `Content` for `fetch_links`: a body becomes its frames. They follow from the bytes of the clip and
the configuration, frames at random from the key of the record too. So a retry gives what a first run would have given,
and a clip that several records name is fetched once, and decoded once for each of them only where frames are random.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.core.pipeline import Reason, Rejected
from pipelines.images.normalise import (
    IMAGE_REASONS,
    ImageConfig,
    check_size,
    normalise_pixels,
    shown_size,
)
from pipelines.videos.decode import CLIP_REASONS, DECODERS, Clip, decoder_at, open_clip
from pipelines.videos.frames import FrameConfig, choose_frames
from pipelines.videos.process import PROCESS_REASONS, BoundedProcess, DecodeLimits
from schemas.images import ImageError
from schemas.sample import Sample

SEED_BYTES = 32
_SIZES = ("image_too_small", "image_too_elongated", "image_too_many_pixels")

FRAME_TYPE = pa.struct(
    [
        ("data", pa.large_binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("time_s", pa.float64()),
    ]
)
CLIP_FIELDS = (
    pa.field("decoder", pa.string()),
    pa.field("codec", pa.string()),
    pa.field("duration_s", pa.float64()),
    pa.field("frame_rate", pa.float64()),
    pa.field("num_frames", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("frame_index", pa.list_(pa.int32())),
)
"""What the meta of a sample says of its clip."""


@dataclass(frozen=True)
class VideoContent:
    """Clips as what links lead to: the column `clips` of a table.

    | field         | type                | meaning                                                       |
    |---------------|---------------------|---------------------------------------------------------------|
    | slot          | int32               | number of the link in its record                              |
    | frames        | list of FRAME_TYPE  | encoded images with their time in the presentation, in order  |
    | decoder       | string              | which decoder read them: a name of `DECODERS`                 |
    | codec         | string              | FFmpeg's name of it                                           |
    | duration_s    | float64             | seconds from the first frame to the end of the last           |
    | frame_rate    | float64             | frames per second, on average                                 |
    | num_frames    | int32               | of the clip                                                   |
    | width, height | int32               | of the clip, as stored                                        |
    | frame_index   | list of int32       | of each frame its index in the clip                           |
    """

    frames: FrameConfig = field(default_factory=FrameConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    column = "clips"
    accept = "video/mp4,video/webm,video/*;q=0.9,*/*;q=0.5"

    def __reduce__(self) -> tuple[type["VideoContent"], tuple[Any, ...]]:
        return type(self), (self.frames, self.image, self.limits)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The fields of one clip."""
        return (pa.field("frames", pa.list_(FRAME_TYPE)), *CLIP_FIELDS)

    @property
    def reasons(self) -> Mapping[str, Reason]:
        """Why a body gives no frames that are kept."""
        sizes = {word: IMAGE_REASONS[word] for word in _SIZES}
        return {**CLIP_REASONS, **PROCESS_REASONS, **sizes}

    @property
    def is_keyed(self) -> bool:
        """Whether the key decides on the frames: those at random."""
        return self.frames.choice == "random"

    def convert(self, body: bytes, key: str = "") -> Mapping[str, Any]:
        """The frames of a clip; those at random are seeded by the key. Raises `Rejected`."""
        value, images = self._process.run(hashlib.sha256(key.encode()).digest() + body)
        frames = [
            {"data": data, **frame} for data, frame in zip(images, value.pop("frames"), strict=True)
        ]
        return {"frames": frames, **value}

    def num_bytes(self, value: Mapping[str, Any]) -> int:
        """Bytes of the encoded frames."""
        return sum(len(frame["data"]) for frame in value["frames"])

    def published(self, sample: Sample) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The clip of a published sample."""
        frames = [
            {"data": s.image, **{n: getattr(s, n) for n in FRAME_TYPE.names if n != "data"}}
            for s in sample.images
        ]
        yield 0, {"frames": frames, **sample.meta["clip"]}

    @property
    def pid(self) -> int | None:
        """Of the process of the decoder, while there is one."""
        return self._process.pid

    def close(self) -> None:
        """End the process of the decoder."""
        self._process.close()

    @cached_property
    def _process(self) -> BoundedProcess:
        decoders = DECODERS if self.frames.decoder == "auto" else [self.frames.decoder]
        config = {
            "frames": asdict(self.frames),
            "image": asdict(self.image),
            "decoders": [[name, DECODERS[name]] for name in decoders],
        }
        return BoundedProcess(f"{__name__}:frame_work", config, self.limits)


def frame_work(
    config: Mapping[str, Any],
) -> Callable[[bytes], tuple[dict[str, Any], list[bytes]]]:
    """The work on clips, each behind the seed of its random frames; made in the process of the decoder."""
    frames, image = FrameConfig(**config["frames"]), ImageConfig(**config["image"])
    decoders = [(name, decoder_at(address)) for name, address in config["decoders"]]

    def work(seeded: bytes) -> tuple[dict[str, Any], list[bytes]]:
        seed, body = seeded[:SEED_BYTES], seeded[SEED_BYTES:]
        clip = open_clip(body)
        _check_size(clip, image)
        indices = choose_frames(clip.timeline, frames, seed)
        rejected: Rejected | None = None
        for name, decoder in decoders:
            try:
                return _frames(clip, name, decoder(clip, indices), indices, image)
            except Rejected as error:
                rejected = error
        assert rejected is not None
        raise rejected

    return work


def _check_size(clip: Clip, image: ImageConfig) -> None:
    """Before anything is decoded, of the frames as they are shown."""
    width, height = clip.size[::-1] if clip.is_transposed else clip.size
    try:
        check_size(*shown_size(width, height, clip.shown_aspect), image)
    except ImageError as error:
        raise Rejected(error.reason, error.detail) from None


def _frames(
    clip: Clip,
    decoder: str,
    pixels: Iterator[np.ndarray],
    indices: Sequence[int],
    image: ImageConfig,
) -> tuple[dict[str, Any], list[bytes]]:
    timeline, frames, blobs = clip.timeline, [], []
    for index, one in zip(indices, pixels, strict=True):
        normalised = normalise_pixels(one, image, clip.shown_aspect)
        blobs.append(normalised.data)
        frames.append(
            {
                "format": normalised.format,
                "width": normalised.width,
                "height": normalised.height,
                "time_s": timeline.time_s(index),
            }
        )
    width, height = clip.size
    value = {
        "frames": frames,
        "decoder": decoder,
        "codec": clip.stream.codec_context.name,
        "duration_s": timeline.duration_s,
        "frame_rate": timeline.frame_rate,
        "num_frames": len(timeline.pts),
        "width": width,
        "height": height,
        "frame_index": indices,
    }
    return value, blobs
