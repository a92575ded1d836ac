"""The synthetic world as WebVid: a CSV of captions, and mp4 clips in which one shape moves over a plain background.

DIR/clips.csv                                 header and rows as WebVid distributes them
DIR/images/videos/<page_dir>/<videoid>.mp4    the clips, laid out as WebVid's downloader does: `--media DIR/images`
DIR/truth.jsonl                               one line per row: scene, direction, caption, fault
DIR/summary.json                              configuration and exact counts

Of the configuration `num_documents` (rows), `seed` and `bad_share` count. A clip follows from the seed and its index
alone. Some rows have one fault each: a caption of nothing but metadata words, a clip that is missing, cut off, sound
alone, without frames, or no video at all.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from pipelines.miniworld import language
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.folder import read_world_summary, write_world_folder
from pipelines.miniworld.link_kinds import IMAGE_HOST
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import Scene, Thing, pick, sample_scene

COLUMNS = ("videoid", "name", "page_idx", "page_dir", "duration", "contentUrl")
VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""
BUILD = "emu build webvid --metadata '{out}/clips.csv'"
SIDE_PX = 96
"""Pixels of the shorter side of the clips."""
SECONDS = 1.5
SOUND_RATE = 8000
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
FAULTS = ("only_metadata", "missing", "cut", "sound", "no_frames", "no_video")
DECORATIONS = (
    "{}",
    "{}. 4k stock footage",
    "{}, 1920x1080",
    "{} - royalty free",
    "Slow motion: {}",
    "{}. shot on red camera, prores 422",
)
"""What captions of stock clips carry beside what is seen."""
_RATES = (12, 15, 24)


@dataclass(frozen=True)
class ClipsSummary:
    """Exact counts: what a correct build finds."""

    config: MiniworldConfig
    num_rows: int
    num_kept: int
    num_by_fault: dict[str, int]
    version: int = VERSION


@dataclass(frozen=True)
class SyntheticClip:
    """A clip before it is written."""

    scene: Scene
    direction: str
    rate: int
    fault: str | None
    name: str
    """The caption as WebVid writes it, with the words of a stock site."""
    videoid: str
    page_dir: str

    @property
    def path(self) -> str:
        """Of its file below the folder of media."""
        return f"videos/{self.page_dir}/{self.videoid}.mp4"

    @property
    def caption(self) -> str:
        """What is seen."""
        return f"{language.caption(self.scene)} moving {self.direction}"


def sample_clip(config: MiniworldConfig, index: int) -> SyntheticClip:
    """The clip at `index`; it does not depend on the number of clips."""
    rng = np.random.default_rng([7, config.seed, index])
    scene = sample_scene(rng, max_things=1, aspects=(1.0, 4 / 3, 3 / 2))
    number_of_fault = int((index + 1) * config.bad_share)
    is_bad = number_of_fault > int(index * config.bad_share)
    fault = FAULTS[(number_of_fault - 1) % len(FAULTS)] if is_bad else None
    direction, rate = pick(rng, list(DIRECTIONS)), pick(rng, _RATES)
    page = index // 10 * 50
    clip = SyntheticClip(
        scene, direction, rate, fault, "", str(10_000 + index), f"{page + 1:06d}_{page + 50:06d}"
    )
    form = pick(rng, DECORATIONS)
    name = "4k uhd stock footage" if fault == "only_metadata" else form.format(clip.caption)
    return dataclasses.replace(clip, name=name)


def clip_frames(clip: SyntheticClip) -> list[np.ndarray]:
    """The frames: (height, width, 3), uint8, RGB; the shape crosses a third of the frame."""
    num_frames = max(round(SECONDS * clip.rate), 1)
    (thing,), (dx, dy) = clip.scene.things, DIRECTIONS[clip.direction]
    frames = []
    for number in range(num_frames):
        part = number / max(num_frames - 1, 1) - 0.5
        moved = _moved(thing, dx * part / 3, dy * part / 3)
        pixels = render(dataclasses.replace(clip.scene, things=(moved,)), SIDE_PX)
        frames.append(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
    return frames


def _moved(thing: Thing, dx: float, dy: float) -> Thing:
    return dataclasses.replace(
        thing, x=0.5 + (thing.x - 0.5) / 2 + dx, y=0.5 + (thing.y - 0.5) / 2 + dy
    )


def encode_clip(
    frames: Sequence[np.ndarray],
    rate: int,
    *,
    pts: Sequence[int] | None = None,
    rotation: int | None = None,
    flips: tuple[bool, bool] = (False, False),
    sample_aspect: Fraction | None = None,
    keyframe_every: int = 12,
    has_sound: bool = False,
    format: str = "mp4",
) -> bytes:
    """A clip of these frames; the same frames and options give the same bytes.

    Args:
        frames: (height, width, 3), uint8, RGB, of even sizes; none for a clip of sound alone.
        rate: ticks per second of `pts`; without them, frames per second.
        pts: times of the frames, rising; the default is one tick for each.
        rotation: degrees counter-clockwise of the display matrix.
        flips: horizontal and vertical flip of the display matrix.
        sample_aspect: width over height of a pixel.
        keyframe_every: frames from one keyframe to the next.
        has_sound: add a silent audio stream.
        format: FFmpeg's name of the container.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=format) as container:
        sound: Any = None
        if has_sound or not len(frames):
            sound = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        if len(frames):
            _add_video(
                *(container, frames, rate, pts or range(len(frames))),
                *(rotation, flips, sample_aspect, keyframe_every),
            )
        if sound is not None:
            _add_silence(container, sound)
    return out.getvalue()


def _add_video(
    container: Any,
    frames: Sequence[np.ndarray],
    rate: int,
    pts: Sequence[int],
    rotation: int | None,
    flips: tuple[bool, bool],
    sample_aspect: Fraction | None,
    keyframe_every: int,
) -> None:
    options = {"crf": "18", "g": str(keyframe_every), "preset": "veryfast"}
    options["x264-params"] = "no-mbtree=1:scenecut=0"  # mbtree reads memory that was never written
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt, stream.codec_context.max_b_frames = "yuv420p", 2
    stream.codec_context.thread_count = 1  # more of them do not always give the same bytes
    if sample_aspect is not None:
        stream.codec_context.sample_aspect_ratio = sample_aspect
    if rotation is not None or any(flips):
        stream.set_display_rotation(rotation or 0, hflip=flips[0], vflip=flips[1])
    for pixels, time in zip(frames, pts, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = time, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _add_silence(container: Any, stream: Any) -> None:
    for number in range(8):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = SOUND_RATE, 1024 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def clip_file(clip: SyntheticClip) -> bytes | None:
    """The bytes of a clip's file, with its fault; None where it has no file."""
    if clip.fault == "missing":
        return None
    if clip.fault == "no_video":
        return b"<html>404</html>"
    if clip.fault == "sound":
        return encode_clip([], clip.rate)
    whole = encode_clip(clip_frames(clip), clip.rate)
    if clip.fault == "cut":
        return whole[: len(whole) * 2 // 3]
    return without_frames(whole) if clip.fault == "no_frames" else whole


def without_frames(clip: bytes) -> bytes:
    """An mp4 file whose tables of samples are empty (ISO 14496-12: `stsz`, `stts`, `stsc`, `stco`, `ctts`, `stss`)."""
    data = bytearray(clip)
    for name in (b"stsz", b"stts", b"stsc", b"stco", b"ctts", b"stss"):
        position = data.find(name)
        if position >= 0:
            start = position + (12 if name == b"stsz" else 8)  # of the number of entries
            data[start : start + 4] = bytes(4)
    return bytes(data)


def write_world(config: MiniworldConfig, directory: Path | str) -> ClipsSummary:
    """Write the world of `config` into `directory` and return its counts; the same bytes each time.

    Raises:
        FileExistsError: as of `write_world_folder`.
    """
    write_world_folder(
        directory, "webvid", VERSION, config, lambda partial: _write(config, partial)
    )
    config, counts = read_world_summary(directory, VERSION)
    return ClipsSummary(config, **counts)


def read_truth(directory: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of truth.jsonl, one for each row."""
    with (Path(directory) / "truth.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def _write(config: MiniworldConfig, directory: Path) -> ClipsSummary:
    (directory / "images").mkdir()
    clips = [sample_clip(config, index) for index in range(config.num_documents)]
    for clip in tqdm(clips, desc="write", unit="clip", disable=None):
        data = clip_file(clip)
        if data is not None:
            path = directory / "images" / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (directory / "clips.csv").write_text(_table(clips), newline="")
    truth = [dataclasses.asdict(clip) | {"caption": clip.caption} for clip in clips]
    (directory / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth))
    faults = Counter(clip.fault for clip in clips if clip.fault)
    num_kept = len(clips) - faults.total()
    return ClipsSummary(config, len(clips), num_kept, dict(sorted(faults.items())))


def _table(clips: Sequence[SyntheticClip]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    duration = f"PT00H00M{int(SECONDS):02d}S"
    for index, clip in enumerate(clips):
        url = f"http://{IMAGE_HOST}/{clip.path}"
        row = (clip.videoid, clip.name, index // 10, clip.page_dir, duration, url)
        writer.writerow(row)
    return out.getvalue()
