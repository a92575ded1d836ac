"""The synthetic world as storyboards: sheets of frames, their specifications, and subtitles that describe them.

DIR/documents/videos_0.jsonl, VIDEO.json, ...   records of videos, in the three forms of `pipelines.storyboards.records`
DIR/images/VIDEO_l1_m0.webp, ...                sheets; serve this folder with `server`, or give it as a media folder
DIR/images/VIDEO.en.vtt, ...                    subtitles of the videos whose records hold none
DIR/truth.jsonl                                 one line per video: fault, frames with their times, subtitles
DIR/summary.json                                configuration and exact counts

A video shows one scene after the other; a subtitle describes each when it begins. The number of a frame stands in its
lowest row as 16 black and white blocks (`frame_number`), so that a test sees which frame it has. The levels are those
of YouTube in small: an overview, and a level with a frame every 2, 5 or 10 seconds whose last sheet is short or padded
with black.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.folder import read_world_summary, write_world_folder
from pipelines.miniworld.language import describe
from pipelines.miniworld.link_kinds import IMAGE_HOST
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import pick, sample_scene

CORPUS = "yt_storyboard"
VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""
WIDTH, HEIGHT = 80, 60
NUM_COLUMNS, NUM_ROWS = 5, 4
FRAMES_PER_SCENE = 4
FORMS = ("record", "player_response", "info")
FAULTS = (
    "no_storyboard",
    "spec_malformed",
    "malformed_json",
    "sheet_missing",
    "sheet_size",
    "bad_subtitles",
)
"""Of videos; those of the last three are kept with what is left of them."""
SHEET_PATH = "{id}_l{level}_m{sheet}.webp"
"""The option `--sheet-path` for the folder of images."""
BUILD = "emu build yt-storyboard --videos '{out}/documents/*'"
_BIT_PX = 5
_NUM_BITS = 16


@dataclass(frozen=True)
class StoryboardSummary:
    """Exact counts of a world: what a correct build finds in it.

    Attributes:
        num_records: videos, faulty ones included.
        num_records_by_fault: the same of faulty ones, by FAULTS.
        num_videos_kept: videos of which frames arrive.
        num_frames: frames of those that arrive.
        num_subtitles: of the videos that are kept, where they can be read.
    """

    config: MiniworldConfig
    num_records: int
    num_records_by_fault: dict[str, int]
    num_videos_kept: int
    num_frames: int
    num_subtitles: int
    version: int = VERSION


@dataclass(frozen=True)
class SyntheticVideo:
    """A video: what its record says, its frames and subtitles."""

    id: str
    form: str
    fault: str | None
    interval_s: int
    duration_s: int
    count: int
    subtitles: list[dict[str, Any]]
    frames: list[np.ndarray]
    """Of HEIGHT x WIDTH pixels, 8-bit RGB."""

    @property
    def num_sheets(self) -> int:
        """Sheets of the level with times."""
        return -(-self.count // (NUM_COLUMNS * NUM_ROWS))

    @property
    def arriving(self) -> list[int]:
        """The numbers of the frames that a correct build keeps."""
        if self.fault in FAULTS[:3]:
            return []
        lost = 0 if self.fault in ("sheet_missing", "sheet_size") else -1
        per_sheet = NUM_COLUMNS * NUM_ROWS
        return [k for k in range(self.count) if k // per_sheet != lost]


def write_world(config: MiniworldConfig, directory: Path | str) -> StoryboardSummary:
    """Write the world of `config` into `directory` and return its counts; the same bytes each time.

    Of the configuration count `seed`, `num_documents` (videos), `max_things` and `bad_share`.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    write_world_folder(directory, CORPUS, VERSION, config, lambda partial: _write(config, partial))
    found, counts = read_world_summary(directory, VERSION)
    return StoryboardSummary(config=found, **counts)


def sample_video(config: MiniworldConfig, index: int) -> SyntheticVideo:
    """Video number `index`; equal configurations give equal videos."""
    rng = np.random.default_rng([config.seed, index])
    num_faulty = int(index * config.bad_share)
    is_faulty = int((index + 1) * config.bad_share) > num_faulty
    interval_s = pick(rng, (2, 5, 10))
    num_scenes = int(rng.integers(3, 9))
    # YouTube gives two frames more than the duration has intervals.
    count = num_scenes * FRAMES_PER_SCENE + int(rng.integers(2, FRAMES_PER_SCENE + 1))
    duration_s = (count - 2) * interval_s + int(rng.integers(interval_s))
    scenes = [
        sample_scene(rng, config.max_things, (WIDTH / HEIGHT,)) for _ in range(num_scenes + 1)
    ]
    starts = [n * FRAMES_PER_SCENE * interval_s for n in range(num_scenes + 1)]
    subtitles = [
        {"text": describe(scene, rng), "start": start + 0.5, "duration": 3.0}
        for scene, start in zip(scenes, starts, strict=True)
        if start < duration_s
    ]
    pictures = [render(scene, HEIGHT) for scene in scenes]
    frames = [_numbered(pictures[k // FRAMES_PER_SCENE], k) for k in range(count)]
    return SyntheticVideo(
        f"video-{config.seed % 1000:03d}-{index:04d}",
        FORMS[index % len(FORMS)],
        FAULTS[num_faulty % len(FAULTS)] if is_faulty else None,
        interval_s,
        duration_s,
        count,
        subtitles,
        frames,
    )


def _numbered(picture: np.ndarray, number: int) -> np.ndarray:
    pixels = picture.copy()
    bits = [255 * (number >> bit & 1) for bit in range(_NUM_BITS)]
    pixels[-_BIT_PX:] = np.repeat(np.array(bits, np.uint8), WIDTH // _NUM_BITS)[None, :, None]
    return pixels


def frame_number(pixels: np.ndarray) -> int:
    """The number that stands in a frame, HEIGHT x WIDTH x 3."""
    row = pixels[-_BIT_PX // 2].mean(axis=1).reshape(_NUM_BITS, -1)[:, 1:-1].mean(axis=1)
    return sum(int(value > 127) << bit for bit, value in enumerate(row))


def _write(config: MiniworldConfig, partial: Path) -> StoryboardSummary:
    (partial / "documents").mkdir()
    (partial / "images").mkdir()
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    with (
        (partial / "documents/videos_0.jsonl").open("w") as lines,
        (partial / "truth.jsonl").open("w") as truth,
    ):
        for index in range(config.num_documents):
            video = sample_video(config, index)
            record = _record(video)
            if index % 5 == 4 and video.fault is None:
                path = partial / "documents" / f"{video.id}.info.json"
                path.write_text(json.dumps(json.loads(record), indent=1))
            else:
                lines.write(record + "\n")
            _write_media(video, partial / "images")
            truth.write(json.dumps(_truth(video)) + "\n")
            arriving = video.arriving
            faults.update([video.fault] if video.fault else [])
            counts.update(
                num_videos_kept=bool(arriving),
                num_frames=len(arriving),
                num_subtitles=len(video.subtitles)
                if arriving and video.fault != "bad_subtitles"
                else 0,
            )
    numbers = {name: counts[name] for name in ("num_videos_kept", "num_frames", "num_subtitles")}
    return StoryboardSummary(config, config.num_documents, dict(sorted(faults.items())), **numbers)


def _truth(video: SyntheticVideo) -> dict[str, Any]:
    values = {name: value for name, value in asdict(video).items() if name != "frames"}
    return values | {"frames": [[k, k * video.interval_s] for k in video.arriving]}


def _record(video: SyntheticVideo) -> str:
    if video.fault == "malformed_json":
        return f'{{"id": "{video.id}", "spec": '
    subtitles: Any = {"en": video.subtitles} if video.form == "record" else None
    if video.fault == "bad_subtitles":
        subtitles = {"en": "these are no subtitles"}
    spec = _spec(video)
    if video.fault == "no_storyboard":
        return json.dumps({"playabilityStatus": {"status": "LOGIN_REQUIRED"}})
    if video.fault or video.form == "record":
        record = {"id": video.id, "spec": spec, "duration": video.duration_s}
        return json.dumps(record | ({"subtitles": subtitles} if subtitles else {}))
    if video.form == "player_response":
        details = {"videoId": video.id, "lengthSeconds": str(video.duration_s)}
        boards = {"playerStoryboardSpecRenderer": {"spec": spec}}
        return json.dumps({"videoDetails": details, "storyboards": boards})
    formats = [_info_format(video, level) for level in (1, 0)]
    return json.dumps({"id": video.id, "duration": video.duration_s, "formats": formats})


def _spec(video: SyntheticVideo) -> str:
    size = f"{WIDTH}#{HEIGHT}"
    if video.fault == "spec_malformed":
        return f"http://{IMAGE_HOST}/image/$N.webp|{size}#{video.count}#0#0#1000#m$M#x"
    missing = "not_found" if video.fault == "sheet_missing" else "image"
    levels = (
        f"{WIDTH // 2}#{HEIGHT // 2}#{NUM_COLUMNS * NUM_ROWS}#{NUM_COLUMNS}#{NUM_ROWS}#0#m0",
        f"{size}#{video.count}#{NUM_COLUMNS}#{NUM_ROWS}#{1000 * video.interval_s}#m$M",
    )
    return "|".join((f"http://{IMAGE_HOST}/{missing}/{video.id}_l$L_$N.webp", *levels))


def _info_format(video: SyntheticVideo, level: int) -> dict[str, Any]:
    """A level as yt-dlp describes it, which numbers them from the largest."""
    num_sheets, count = (video.num_sheets, video.count) if level else (1, NUM_COLUMNS * NUM_ROWS)
    names = (f"{video.id}_l{level}_m{m}.webp" for m in range(num_sheets))
    return {
        "format_id": f"sb{1 - level}",
        "width": WIDTH * (level + 1) // 2,
        "height": HEIGHT * (level + 1) // 2,
        "columns": NUM_COLUMNS,
        "rows": NUM_ROWS,
        "fps": count / video.duration_s,
        "fragments": [{"url": f"http://{IMAGE_HOST}/image/{name}"} for name in names],
    }


def _write_media(video: SyntheticVideo, folder: Path) -> None:
    if video.fault in FAULTS[:3]:
        return
    per_sheet = NUM_COLUMNS * NUM_ROWS
    overview = [video.frames[k * video.count // per_sheet] for k in range(per_sheet)]
    small = [np.ascontiguousarray(frame[::2, ::2]) for frame in overview]
    _write_sheet(folder / f"{video.id}_l0_m0.webp", small, is_padded=True)
    for m in range(video.num_sheets):
        frames = video.frames[m * per_sheet : (m + 1) * per_sheet]
        path = folder / f"{video.id}_l1_m{m}.webp"
        if m == 0 and video.fault == "sheet_missing":
            continue
        if m == 0 and video.fault == "sheet_size":
            frames = [frame[:-1] for frame in frames]
        _write_sheet(path, frames, is_padded=video.interval_s == 5)
    if video.form != "record" and video.fault != "bad_subtitles":
        (folder / f"{video.id}.en.vtt").write_text(_webvtt(video))


def _write_sheet(path: Path, frames: list[np.ndarray], is_padded: bool) -> None:
    height, width = frames[0].shape[:2]
    num_rows = NUM_ROWS if is_padded else -(-len(frames) // NUM_COLUMNS)
    sheet = np.zeros((num_rows * height, NUM_COLUMNS * width, 3), np.uint8)
    for cell, frame in enumerate(frames):
        top, left = cell // NUM_COLUMNS * height, cell % NUM_COLUMNS * width
        sheet[top : top + height, left : left + width] = frame
    data = io.BytesIO()
    # As YouTube does: the name says little about the format.
    kind: dict[str, Any] = {"format": "WEBP", "quality": 90, "method": 0}
    if num_rows % 2:
        kind = {"format": "JPEG", "quality": 92}
    Image.fromarray(sheet).save(data, **kind)
    path.write_bytes(data.getvalue())


def _webvtt(video: SyntheticVideo) -> str:
    """Scrolling captions, as automatic ones are: each line is shown again above the next."""
    cues, above = ["WEBVTT\nKind: captions\nLanguage: en\n"], " "
    for entry in video.subtitles:
        start = entry["start"]
        words = entry["text"].split(" ", 1)
        timed = f"{words[0]}<{_time(start + 0.2)}><c> {words[1]}</c>"
        cues.append(f"{_time(start)} --> {_time(start + 2)} align:start\n{above}\n{timed}\n")
        cues.append(
            f"{_time(start + 2)} --> {_time(start + 2.01)} align:start\n{entry['text']}\n \n"
        )
        above = entry["text"]
    return "\n".join(cues)


def _time(seconds: float) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}"
