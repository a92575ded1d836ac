"""Which frames of a clip are taken.

The timeline of a clip is what its packets say: the times at which its frames are shown, in order. A choice follows
from the timeline alone, so it is the same whichever decoder reads the pixels.

| choice      | frames                                                                                        |
|-------------|-----------------------------------------------------------------------------------------------|
| `uniform`   | those shown in the middle of `num_frames` equal parts of the clip's duration                  |
| `random`    | `num_frames` different ones, all equally likely; seeded, so that a run can be repeated        |
| `keyframes` | the keyframes nearest to the uniform times: 10 to 20 times as quick, often fewer frames       |

No frame is taken twice: a clip of fewer frames gives all that it has, and a frame that is shown for several parts of
the duration is taken once.
"""

import bisect
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from schemas.validation import Checked

MAX_FRAMES = 256


@dataclass(frozen=True)
class FrameConfig(Checked):
    """Which frames are extracted from a clip, and by which decoder."""

    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES, description="frames of a clip")] = 8
    """Frames per clip, 1 to 256. The paper trains on 8; each takes 34 positions."""
    choice: Literal["uniform", "random", "keyframes"] = "uniform"
    """uniform: the frames in the middle of equal parts of the clip.
    random: frames at random times, determined by the sample's key and --frames.seed.
    keyframes: the keyframes nearest to the uniform times; 10 to 20 times faster to decode, but often fewer frames."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seed for the choice random."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """auto: decord, and PyAV for clips that decord cannot read. Each sample records which decoder was used."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip in the order in which they are shown."""

    pts: tuple[int, ...]
    """Presentation times in units of `time_base`, rising; at least one."""
    is_key: tuple[bool, ...]
    """Whether a frame can be decoded without those before it."""
    end: int
    """Where the last frame ends."""
    time_base: Fraction
    """Seconds."""
    start_s: Fraction = Fraction(0)
    """Where the presentation begins, which is time 0 for a viewer."""

    def time_s(self, index: int) -> float:
        """Seconds from the beginning of the presentation to a frame."""
        return max(0.0, round(float(self.pts[index] * self.time_base - self.start_s), 6))

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return round(float((self.end - self.pts[0]) * self.time_base), 6)

    @property
    def frame_rate(self) -> float:
        """Frames per second, on average; 0 where the clip has no duration."""
        return round(len(self.pts) / self.duration_s, 3) if self.duration_s else 0.0

    def shown_at(self, pts: Fraction) -> int:
        """The index of the frame that is shown at a time."""
        return max(bisect.bisect_right(self.pts, pts) - 1, 0)

    def key_before(self, index: int) -> int:
        """The index of the last keyframe that is not behind a frame; 0 where there is none."""
        return next((i for i in range(index, -1, -1) if self.is_key[i]), 0)


def choose_frames(timeline: Timeline, config: FrameConfig, seed: bytes) -> list[int]:
    """The indices of the frames to take, rising.

    Args:
        timeline: of the clip.
        config: number and kind.
        seed: of the sample; for a random choice.
    """
    num_total = len(timeline.pts)
    if config.choice == "random":
        generator = random.Random(seed + config.seed.to_bytes(8))
        return sorted(generator.sample(range(num_total), min(config.num_frames, num_total)))
    if config.choice == "keyframes":
        keys = [i for i, is_key in enumerate(timeline.is_key) if is_key] or [0]
        return sorted({_nearest(timeline, keys, t) for t in _middles(timeline, config.num_frames)})
    if config.num_frames >= num_total:
        return list(range(num_total))
    return sorted({timeline.shown_at(t) for t in _middles(timeline, config.num_frames)})


def _middles(timeline: Timeline, num_parts: int) -> list[Fraction]:
    first, length = timeline.pts[0], timeline.end - timeline.pts[0]
    return [first + Fraction(length * (2 * n + 1), 2 * num_parts) for n in range(num_parts)]


def _nearest(timeline: Timeline, indices: list[int], pts: Fraction) -> int:
    return min(indices, key=lambda i: (abs(timeline.pts[i] - pts), i))
