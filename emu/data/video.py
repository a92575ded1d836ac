"""Frames of a video as images of a prompt; the only module that imports decord.

The released code takes 8 evenly spaced frames, the first half a step after the start. Each frame is a whole image
for the model; there is no token for a video.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

NUM_FRAMES = 8


class VideoError(ValueError):
    """A file that cannot be read as a video, and why."""


@dataclass(frozen=True)
class Video:
    """A video as a part of a prompt: a file or its encoded bytes, and the number of frames to use."""

    source: Path | str | bytes = field(repr=False)
    num_frames: int = NUM_FRAMES

    def __post_init__(self) -> None:
        if isinstance(self.num_frames, bool) or not isinstance(self.num_frames, int):
            raise ValueError(f"num_frames is {self.num_frames!r}, give a whole number")
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}, give at least 1")

    def frames(self) -> list[Image.Image]:
        """The frames in order, as `read_frames` gives them."""
        return read_frames(self.source, self.num_frames)


def frame_indices(num_total: int, num_frames: int = NUM_FRAMES) -> list[int]:
    """The indices of the frames to use out of `num_total`, by the released rule; a short video repeats some."""
    if num_total < 1 or num_frames < 1:
        raise ValueError(f"{num_frames} frames of {num_total}: give at least 1 of at least 1")
    step = (num_total - 1) / num_frames
    return [int(step / 2) + round(step * number) for number in range(num_frames)]


def read_frames(
    source: Path | str | bytes, num_frames: int = NUM_FRAMES, max_pixels: int | None = None
) -> list[Image.Image]:
    """`num_frames` evenly spaced frames of a video file or of its bytes, as RGB images.

    Raises:
        FileNotFoundError: for an absent file.
        VideoError: for a file that cannot be read, or whose frames have more than `max_pixels`.
        ModuleNotFoundError: if decord is not installed.
    """
    decord = _decord()
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        opened = io.BytesIO(source)
    elif Path(source).is_file():
        opened = str(source)
    else:
        raise FileNotFoundError(f"no video at {name}")
    try:
        reader = decord.VideoReader(opened, num_threads=1)
        height, width, _ = reader[0].shape
        if max_pixels is not None and height * width > max_pixels:
            raise VideoError(
                f"{name}: its frames have {width} x {height} pixels, the limit is {max_pixels}"
            )
        frames = reader.get_batch(frame_indices(len(reader), num_frames)).asnumpy()
    except VideoError:
        raise
    except (decord.DECORDError, RuntimeError, ValueError) as error:
        raise VideoError(
            f"{name}: cannot be read as a video (damaged, truncated, or of an unknown format)"
        ) from error
    return [Image.fromarray(frame) for frame in frames]


def _decord() -> Any:
    try:
        import decord
    except ImportError as error:
        raise ModuleNotFoundError(
            "videos need the package decord: pip install decord (its wheels are for Linux x86-64, "
            "macOS x86-64 and Windows; elsewhere install eva-decord, which provides the same module)"
        ) from error
    decord.logging.set_level(
        decord.logging.QUIET
    )  # errors are raised; its log lines would repeat them
    return decord
