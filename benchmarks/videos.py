"""Clips per CPU-second: the frames of a build beside the bare loops of decord and PyAV that do the same work.

    python -m benchmarks.videos --clips FOLDER --rounds 5

For each clip all of them take the same frames, resize them as a build does, and encode them as JPEG. `decord`
and `pyav` are what one would write by hand: open, decode the frames of equal steps, resize, encode; in this
process, without a bound on anything. `build_decord` and `build_pyav` are `VideoContent` with its process,
whose CPU time is counted too, and whose start is not (it serves 500 clips). Rounds are interleaved; a line of
JSON for each, then the medians.
"""

import argparse
import bisect
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import decord
import numpy as np
import psutil
import simplejpeg

from pipelines.images.normalise import ImageConfig
from pipelines.transforms.frames import VideoContent
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits

NUM_FRAMES, SIDE, QUALITY = 8, 256, 95


def encode(pixels: np.ndarray) -> bytes:
    """A JPEG of at most 256 pixels on the shorter side, resized as a build does."""
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    if scale < 1:
        # As a build: linear below a ratio of 1.4, the area of linear samples below 2, else the area.
        size = (max(SIDE, round(width * scale)), max(SIDE, round(height * scale)))
        if 1 / scale < 1.4:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        else:
            if 1 / scale < 2:
                double = (2 * size[0], 2 * size[1])
                pixels = cv2.resize(pixels, double, interpolation=cv2.INTER_LINEAR)
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "420")


def _middles(num_total: int) -> list[int]:
    return [int((n + 0.5) * num_total / NUM_FRAMES) for n in range(NUM_FRAMES)]


def bare_decord(body: bytes) -> list[bytes]:
    """The loop by hand with decord."""
    reader: Any = decord.VideoReader(io.BytesIO(body), num_threads=1)
    return [encode(pixels) for pixels in reader.get_batch(_middles(len(reader))).asnumpy()]


def bare_pyav(body: bytes) -> list[bytes]:
    """The loop by hand with PyAV: seek to the keyframe before each frame, decode forward."""
    container: Any = av.open(io.BytesIO(body))
    stream = container.streams.best("video")
    stream.codec_context.thread_count = 1
    packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
    times, keys = sorted(t for t, _ in packets), sorted(t for t, is_key in packets if is_key)
    found, key, frames = [], None, iter(())
    for wanted in (times[i] for i in _middles(len(times))):
        before = keys[max(bisect.bisect_right(keys, wanted) - 1, 0)]
        if before != key:
            container.seek(before, stream=stream)
            key, frames = before, container.decode(stream)
        frame = next(f for f in frames if f.pts >= wanted)
        found.append(encode(frame.to_ndarray(format="rgb24")))
    return found


def _cpu_s(pids: Sequence[int | None]) -> float:
    spent = time.process_time()
    for pid in pids:
        if pid is not None:
            times = psutil.Process(pid).cpu_times()
            spent += times.user + times.system
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Clips per CPU-second, beside bare loops.")
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bodies = [path.read_bytes() for path in sorted(options.clips.glob("*.mp4"))]
    image, limits = ImageConfig(side=SIDE), DecodeLimits()
    contents = {
        name: VideoContent(FrameConfig(decoder=name), image, limits) for name in ("decord", "pyav")
    }
    works: dict[str, Callable[[bytes], Any]] = {"decord": bare_decord, "pyav": bare_pyav}
    works |= {f"build_{name}": content.convert for name, content in contents.items()}
    for work in works.values():  # warm: libraries are loaded, processes started
        work(bodies[0])
    ratios: dict[str, list[float]] = {name: [] for name in contents}
    for number in range(options.rounds):
        rates = {}
        for name, work in works.items():
            pids = [content.pid for content in contents.values()]
            began = _cpu_s(pids)
            for body in bodies:
                work(body)
            rates[name] = len(bodies) / (_cpu_s(pids) - began)
        for name, found in ratios.items():
            found.append(rates[f"build_{name}"] / rates[name])
        told = {name: round(rate, 3) for name, rate in rates.items()}
        print(
            json.dumps({"round": number, "clips": len(bodies), "clips_per_cpu_s": told}), flush=True
        )
    medians = {name: round(statistics.median(found), 3) for name, found in ratios.items()}
    print(json.dumps({"ratio_to_bare_loop": medians}))
    for content in contents.values():
        content.close()


if __name__ == "__main__":
    main()
