"""Frames of clips as pixels: the header and the timeline through PyAV, the pixels through decord or PyAV.

    clip = open_clip(body)
    for pixels in DECODERS["pyav"](clip, choose_frames(clip.timeline, FrameConfig(), b"")): ...

The header and the packets are read first, which takes a few milliseconds: what is no video, has no frames or is cut
off is refused before anything is decoded. Both decoders are then asked for the same frames, and give the same pixels
(FFmpeg decodes in both). They differ in what they read: decord's FFmpeg is of 2018; it turns frames by the rotation of
the display matrix, loses its flips, and may count other frames. Where it would give something else than meant, it
refuses.

Decoders may hang, crash or leak on damaged clips, so none of this runs in a worker: see `pipelines.videos.process`.
"""

import importlib
import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType
from typing import Any

import av
import av.error
import numpy as np

from pipelines.core.pipeline import Reason, Rejected
from pipelines.videos.frames import Timeline

CLIP_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "not_a_video": Reason("The bytes are not a video file, or are too damaged to be opened."),
        "video_stream_missing": Reason("The file has no video stream (sound alone, for example)."),
        "video_without_frames": Reason("The video stream has no frame."),
        "video_truncated": Reason("The file ends too early.", retryable=True),
        "video_without_times": Reason("Frames of the clip have no time."),
        "video_unsupported": Reason("No available decoder supports this codec."),
        "video_matrix_unsupported": Reason(
            "The display matrix is not a rotation by a multiple of 90 degrees, with or without a flip."
        ),
        "video_corrupt": Reason("A selected frame cannot be decoded."),
    }
)
"""Why a body gives no frames."""

Matrix = tuple[int, int, int, int]
"""Signs of a, b, c, d: a point (x, y) of the stored frame is shown at (ax + cy, bx + dy)."""
IDENTITY: Matrix = (1, 0, 0, 1)

_UNIT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
_MATRIX_OFFSET = {0: 44, 1: 56}  # of the matrix behind the name of a `tkhd` box, by its version
_INDEXED = {"mov", "matroska"}
"""Containers (the first of FFmpeg's names) with an index of times; in others decord gives wrong frames."""
_CUT_BOXES = {b"moov", b"mdat", b"moof"}
_BROKEN = (av.error.FFmpegError, RuntimeError, ValueError, ArithmeticError, LookupError, OSError)
"""What the libraries raise for damaged clips."""


@dataclass(frozen=True)
class Clip:
    """An opened clip; its timeline is known, nothing is decoded yet."""

    body: bytes
    container: Any
    stream: Any
    timeline: Timeline
    matrix: Matrix

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored."""
        return self.stream.codec_context.width, self.stream.codec_context.height

    @cached_property
    def shown_aspect(self) -> float:
        """Width over height of one pixel, as shown."""
        stored = self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio
        aspect = float(stored) if stored and stored > 0 else 1.0
        return 1 / aspect if self.is_transposed else aspect

    @property
    def is_transposed(self) -> bool:
        """Whether columns become rows."""
        return self.matrix[0] == 0


Decoder = Callable[[Clip, Sequence[int]], Iterator[np.ndarray]]
"""Yields the frames of rising indices: (height, width, 3), uint8, RGB, upright."""


def open_clip(body: bytes) -> Clip:
    """The clip in a file; raises `Rejected` with a reason of `CLIP_REASONS`."""
    if _is_cut(body):
        raise Rejected("video_truncated", "a box of the file ends behind its last byte")
    container: Any
    with _rejected("not_a_video"):
        container = av.open(io.BytesIO(body), metadata_errors="replace")
    form = container.format.name
    if form == "image2" or form.endswith("_pipe"):
        raise Rejected("not_a_video", f"an image ({form})")
    stream = container.streams.best("video")
    if stream is None or stream.disposition & stream.disposition.attached_pic:
        raise Rejected("video_stream_missing")
    if stream.codec_context is None or not stream.codec_context.width:
        raise Rejected("video_unsupported", "codec unknown, or no size")
    stream.codec_context.thread_count = 1
    timeline = _timeline(container, stream)
    return Clip(body, container, stream, timeline, _matrix(body, container, stream))


def _timeline(container: Any, stream: Any) -> Timeline:
    """What the packets say; none is decoded."""
    with _rejected("video_truncated"):
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    num_found = _num_reached(packets) if container.format.name == "avi" else len(packets)
    if any(p.is_corrupt for p in packets) or num_found < _declared(stream):
        detail = f"{len(packets)} of {stream.frames} frames"
        raise Rejected("video_truncated" if packets else "video_without_frames", detail)
    if not packets:
        raise Rejected("video_without_frames")
    times = [p.dts if p.pts is None else p.pts for p in packets]
    if any(t is None for t in times):
        raise Rejected("video_without_times")
    keys = dict.fromkeys(sorted(times), False)
    for packet, time in zip(packets, times, strict=True):
        keys[time] = keys[time] or packet.is_keyframe
    pts = tuple(keys)
    return Timeline(
        pts,
        tuple(keys.values()),
        max(t + _length(p, stream) for p, t in zip(packets, times, strict=True)),
        stream.time_base,
        Fraction(container.start_time or 0, av.time_base),
    )


def _declared(stream: Any) -> int:
    """Frames that the file must have: one cut at its end has fewer. Edit lists leave some out, hence a tenth."""
    return math.floor(0.9 * stream.frames)


def _num_reached(packets: Sequence[Any]) -> float:
    """The frames of an AVI file up to the last packet and its typical length: they count empty chunks, which repeat a
    frame."""
    last = packets[-1].dts if packets else None
    return len(packets) if not last or len(packets) < 2 else last + last / (len(packets) - 1)


def _length(packet: Any, stream: Any) -> int:
    if packet.duration:
        return packet.duration
    rate = stream.average_rate or stream.guessed_rate or 25
    return max(round(1 / (rate * stream.time_base)), 1)


def _is_cut(body: bytes) -> bool:
    """Whether a box of an MP4 file at the top level reaches behind its end (ISO 14496-12, 4.2)."""
    position = 0
    if body[4:8] != b"ftyp":
        return False
    while position + 8 <= len(body):
        size, kind = struct.unpack_from(">I4s", body, position)
        if size == 1 and position + 16 <= len(body):
            (size,) = struct.unpack_from(">Q", body, position + 8)
        if size == 0:
            return False  # up to the end
        if position + size > len(body):
            return kind in _CUT_BOXES
        if size < 8:
            return False
        position += size
    return False


def _matrix(body: bytes, container: Any, stream: Any) -> Matrix:
    """The display matrix. Those of an MP4 file stand in its track headers; others are told by the first frame."""
    if _has_unit_matrices(body):
        return IDENTITY
    with _rejected("video_corrupt"):
        container.seek(0, stream=stream)
        frame = next(container.decode(stream), None)
    if frame is None:
        raise Rejected("video_corrupt", "no frame could be decoded")
    for number in range(len(frame.side_data)):
        data = frame.side_data[number]
        if data.type.name == "DISPLAYMATRIX":
            return _signs(struct.unpack("=9i", bytes(data)))
    return IDENTITY


def _has_unit_matrices(body: bytes) -> bool:
    """True for an MP4 file in which every track header has the unit matrix."""
    num_found, position = 0, body.find(b"tkhd")
    while position >= 0:
        start = position + _MATRIX_OFFSET.get(body[position + 4], 44)
        if body[start : start + len(_UNIT)] != _UNIT:
            return False
        num_found += 1
        position = body.find(b"tkhd", position + 4)
    return num_found > 0


def _signs(matrix: Sequence[int]) -> Matrix:
    a, b, c, d = (matrix[i] / (1 << 16) for i in (0, 1, 3, 4))
    rounded = tuple(0 if abs(v) < 0.01 else int(math.copysign(1, v)) for v in (a, b, c, d))
    is_straight = (rounded[0] == rounded[3] == 0) != (rounded[1] == rounded[2] == 0)
    if not is_straight or 0 in (a * d - b * c,):
        raise Rejected("video_matrix_unsupported", f"a, b, c, d: {a:g}, {b:g}, {c:g}, {d:g}")
    return rounded[0], rounded[1], rounded[2], rounded[3]


def upright(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Pixels (height, width, 3) as shown."""
    a, b, c, d = matrix
    if a == 0:
        return pixels.transpose(1, 0, 2)[::b, ::c]
    return pixels[::d, ::a]


def pyav_frames(clip: Clip, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames by PyAV: from the keyframe before each, forward; no group of pictures is decoded twice."""
    reader = _PyavReader(clip)
    for index in indices:
        with _rejected("video_corrupt", f"frame {index}"):
            pixels = reader.read(index).to_ndarray(format="rgb24")
        yield upright(pixels, clip.matrix)


class _PyavReader:
    """Reads frames of rising indices; where a seek leads behind a frame, from the start of the clip without seeks."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self._frames = clip, iter(())
        self._seeks, self._key = True, -1

    def read(self, index: int) -> Any:
        """The frame."""
        key = self._clip.timeline.key_before(index)
        if self._seeks and key > self._key:
            self._seek(key)
        frame = self._forward(index)
        if frame is None and self._seeks:
            self._seeks = False
            self._frames = _all_frames(self._clip)
            frame = self._forward(index)
        if frame is None or frame.is_corrupt:
            raise Rejected("video_corrupt", f"frame {index} of {len(self._clip.timeline.pts)}")
        return frame

    def _seek(self, key: int) -> None:
        pts = self._clip.timeline.pts[key]
        self._clip.container.seek(pts, stream=self._clip.stream)
        self._key, self._frames = key, self._clip.container.decode(self._clip.stream)

    def _forward(self, index: int) -> Any:
        wanted = self._clip.timeline.pts[index]
        for frame in self._frames:
            pts = frame.dts if frame.pts is None else frame.pts
            if pts == wanted:
                return frame
            if pts is not None and pts > wanted:
                break
        return None


def _all_frames(clip: Clip) -> Iterator[Any]:
    container: Any = av.open(io.BytesIO(clip.body), metadata_errors="replace")
    stream = container.streams[clip.stream.index]
    stream.codec_context.thread_count = 1
    return container.decode(stream)


def decord_frames(clip: Clip, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames by decord."""
    decord = importlib.import_module("decord")
    a, b, c, d = clip.matrix
    if a * d - b * c < 0:
        raise Rejected("video_unsupported", "decord does not apply the flip of the display matrix")
    if clip.container.format.name.partition(",")[0] not in _INDEXED:
        container = clip.container.format.name
        raise Rejected("video_unsupported", f"decord seeks inexactly in {container} files")
    errors = (*_BROKEN, decord.DECORDError)
    with _rejected("video_unsupported", "decord", errors):
        decord.logging.set_level(decord.logging.QUIET)
        reader = decord.VideoReader(io.BytesIO(clip.body), num_threads=1)
        if len(reader) != len(clip.timeline.pts):
            detail = f"decord counts {len(reader)} frames, the file has {len(clip.timeline.pts)}"
            raise Rejected("video_unsupported", detail)
    width, height = clip.size
    shape = (width, height, 3) if clip.is_transposed else (height, width, 3)
    for index in indices:
        with _rejected("video_corrupt", f"frame {index}", errors):
            pixels = reader[index].asnumpy()
        if pixels.shape != shape:
            raise Rejected("video_unsupported", f"decord gives frames of shape {pixels.shape}")
        yield pixels


DECODERS: Mapping[str, str] = MappingProxyType(
    {"decord": f"{__name__}:decord_frames", "pyav": f"{__name__}:pyav_frames"}
)
"""Name -> `module:function`, a `Decoder`; in the order in which `auto` tries them."""


def decoder_at(address: str) -> Decoder:
    """The decoder at `module:function`."""
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def _rejected(
    reason: str, where: str = "", errors: tuple[type[Exception], ...] = _BROKEN
) -> Iterator[None]:
    """What the libraries raise for damaged clips becomes `Rejected`; lack of memory passes."""
    try:
        yield
    except Rejected:
        raise
    except av.error.MemoryError:
        raise MemoryError from None
    except errors as error:
        name = type(error).__name__
        raise Rejected(reason, f"{where}: {name}" if where else name) from None
