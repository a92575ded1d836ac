"""Frames of storyboards per CPU-second: the job, and the bare loop that decodes, cuts and encodes, as JSON lines.

    python -m benchmarks.storyboards --videos 40

The job runs `emu build yt-storyboard` from records to published shards in this process (`--runner local`), with its
checks, hashes, ledger and report. The bare loop reads the same files, decodes each sheet with Pillow or OpenCV, cuts it
and encodes every frame as JPEG of quality 95 with OpenCV, and writes nothing. Rounds are interleaved.
"""

import io
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from PIL import Image

from benchmarks.photos import synthetic_photo

_TARGET = 0.8
COUNT = 95


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    videos: int = 40
    """Videos of 95 frames."""
    rounds: int = 3
    """Interleaved rounds, after one that is not counted."""
    sheet: Path | None = None
    """A real sheet of 10 x 10 frames for all videos (`small`); synthetic photos without it."""
    subjects: tuple[str, ...] = ("small", "large")
    """small: frames of 107 x 45, 10 x 10 to a sheet; large: 320 x 180, 3 x 3."""


@dataclass(frozen=True)
class Grid:
    """A level: size of a frame, and of a sheet in frames."""

    width: int
    height: int
    columns: int
    rows: int

    @property
    def num_sheets(self) -> int:
        """Sheets of a video."""
        return -(-COUNT // (self.columns * self.rows))


GRIDS = {"small": Grid(107, 45, 10, 10), "large": Grid(320, 180, 3, 3)}


def main(options: Options) -> None:
    """Prints one line per round and a summary per subject and bare loop."""
    _print(
        machine=platform.machine(), python=platform.python_version(), options=str(asdict(options))
    )
    for subject in options.subjects:
        grid = GRIDS[subject]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_videos(folder, grid, options)
            rates: dict[str, list[float]] = {"job": [], "pillow": [], "opencv": []}
            for number in range(-1, options.rounds):
                for engine, run in _engines(folder, grid).items():
                    rate = options.videos * COUNT / _cpu_s(run)
                    if number >= 0:
                        rates[engine].append(rate)
                        _print(
                            subject=subject,
                            engine=engine,
                            round=number,
                            frames_per_cpu_s=round(rate),
                        )
        _summarise(subject, rates)


def _engines(folder: Path, grid: Grid) -> dict[str, Callable[[], None]]:
    return {
        "job": lambda: _job(folder, grid),
        "pillow": lambda: bare(folder, grid, pillow),
        "opencv": lambda: bare(folder, grid, opencv),
    }


def write_videos(folder: Path, grid: Grid, options: Options) -> None:
    """Sheets as WebP, half of the videos share a picture; records with subtitles every 4 seconds."""
    (folder / "media").mkdir()
    size = (grid.columns * grid.width, grid.rows * grid.height)
    sheets = [_sheet(*size, seed) for seed in range(4)]
    if options.sheet is not None and grid == GRIDS["small"]:
        sheets = [options.sheet.read_bytes()]
    entry = f"{grid.width}#{grid.height}#{COUNT}#{grid.columns}#{grid.rows}#10000#M$M#s"
    subtitles = [{"text": f"a few words of number {n}", "start": 4.0 * n} for n in range(230)]
    with (folder / "videos.jsonl").open("w") as lines:
        for number in range(options.videos):
            record = {"id": f"v{number}", "duration": 930, "subtitles": subtitles}
            record["spec"] = f"https://i.ytimg.example/sb/L$L/$N.jpg|{entry}"
            lines.write(json.dumps(record) + "\n")
            for m in range(grid.num_sheets):
                path = folder / f"media/v{number}_{m}.webp"
                path.write_bytes(sheets[(number + m) % len(sheets)])


def _sheet(width: int, height: int, seed: int) -> bytes:
    photo = Image.open(io.BytesIO(synthetic_photo(width, height, seed))).convert("RGB")
    data = io.BytesIO()
    photo.save(data, "WEBP", quality=75, method=1)
    return data.getvalue()


def _job(folder: Path, grid: Grid) -> None:
    from jobs.build_yt_storyboard import main as build

    out = folder / "out"
    words = ["--videos", str(folder / "videos.jsonl"), "--media", str(folder / "media")]
    words += ["--out", str(out), "--runner", "local", "--sheet-path", "{id}_{sheet}.webp"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert build([*words, "--subtitle-path", "None"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert sum(shard["num_images"] for shard in manifest["shards"]) % COUNT == 0
    shutil.rmtree(out)


def bare(folder: Path, grid: Grid, decode: Callable[[bytes], np.ndarray]) -> None:
    """The loop by hand over the sheets of a folder."""
    num_frames = 0
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    for path in sorted((folder / "media").iterdir()):
        sheet = int(path.stem.rpartition("_")[2])
        pixels = decode(path.read_bytes())
        for cell in range(min(grid.columns * grid.rows, COUNT - sheet * grid.columns * grid.rows)):
            top, left = cell // grid.columns * grid.height, cell % grid.columns * grid.width
            tile = pixels[top : top + grid.height, left : left + grid.width]
            num_frames += int(cv2.imencode(".jpg", tile, quality)[0])
    assert num_frames % COUNT == 0, num_frames


def pillow(data: bytes) -> np.ndarray:
    """Pixels of a sheet, BGR."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, :, ::-1]


def opencv(data: bytes) -> np.ndarray:
    """Pixels of a sheet, BGR."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels


def _cpu_s(run: Callable[[], None]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _summarise(subject: str, rates: dict[str, list[float]]) -> None:
    for engine in ("pillow", "opencv"):
        ratio = statistics.median(
            ours / bare for ours, bare in zip(rates["job"], rates[engine], strict=True)
        )
        job, bare = (round(statistics.median(rates[name])) for name in ("job", engine))
        _print(
            subject=subject,
            against=engine,
            job=job,
            bare=bare,
            ratio=round(ratio, 2),
            target=_TARGET,
        )


def _print(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cv2.setNumThreads(1)
    main(tyro.cli(Options))
