"""Loops of `benchmarks.corpora` that do by hand what a job does to its records: webdataset shards from libraries alone.

Each reads the metadata, makes the same images as the bare loop, and writes them with their texts through webdataset's
`TarWriter`. They check nothing, count nothing, hash nothing, write no index and no ledger, and do not resume.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import webdataset

from benchmarks.storyboards import COUNT, Grid
from benchmarks.videos import bare_decord, encode

Sample = dict[str, Any]
FRAMES_PER_SAMPLE = 16
INTERVAL_S = 10.0


def write(samples: Iterator[Sample], path: Path) -> int:
    """Writes one shard; returns its number of images."""
    num = 0
    with webdataset.TarWriter(str(path)) as tar:
        for sample in samples:
            tar.write(sample)
            num += sum(name.endswith("jpg") for name in sample)
    return num


def pair_samples(folder: Path) -> Iterator[Sample]:
    """`.jpg .txt .json` of rows of a Parquet file."""
    for row in pq.read_table(folder / "rows.parquet").to_pylist():
        photo = _photo(folder / "media" / row["URL"])
        meta = {"url": row["URL"], "caption": row["TEXT"]}
        yield {"__key__": _key(row["URL"]), "jpg": photo, "txt": row["TEXT"], "json": meta}


def document_samples(folder: Path) -> Iterator[Sample]:
    """Images of MMC4 documents, each before the sentence that it belongs to."""
    for number, line in enumerate((folder / "docs.jsonl").open()):
        document = json.loads(line)
        sample: Sample = {"__key__": f"{number:09d}"}
        parts: list[Any] = list(document["text_list"])
        for place, info in sorted(
            enumerate(document["image_info"]), key=lambda each: -each[1]["matched_text_index"]
        ):
            sample[f"{place}.jpg"] = _photo(folder / "media" / info["raw_url"])
            parts.insert(info["matched_text_index"], {"image": place, "url": info["raw_url"]})
        yield sample | {"json": {"url": document["url"], "parts": parts}}


def dialogue_samples(folder: Path) -> Iterator[Sample]:
    """The image and the turns of dialogues of LLaVA."""
    for record in json.loads((folder / "llava.json").read_text()):
        photo = _photo(folder / "media" / record["image"])
        turns = [{"role": t["from"], "text": t["value"]} for t in record["conversations"]]
        yield {"__key__": record["id"], "0.jpg": photo, "json": {"turns": turns}}


def clip_samples(folder: Path) -> Iterator[Sample]:
    """Frames and captions of clips."""
    with (folder / "rows.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            path = folder / "media" / f"{row['videoid']}.mp4"
            frames = {f"{n}.jpg": jpeg for n, jpeg in enumerate(bare_decord(path.read_bytes()))}
            yield {"__key__": row["videoid"], **frames, "json": row}


def storyboard_samples(
    folder: Path, grid: Grid, decode: Callable[[bytes], np.ndarray]
) -> Iterator[Sample]:
    """Frames of videos with the subtitles between them, 16 frames to a sample."""
    for line in (folder / "videos.jsonl").open():
        record = json.loads(line)
        frames = list(_frames(folder, grid, record["id"], decode))
        events: list[tuple[float, int, Any]] = [
            (number * INTERVAL_S, 0, number) for number in range(len(frames))
        ]
        events += [(cue["start"], 1, cue["text"]) for cue in record["subtitles"]]
        sample: Sample = {}
        parts: list[Any] = []
        for time, is_text, content in sorted(events, key=lambda event: event[:2]):
            if is_text:
                parts.append({"text": content, "time": time})
                continue
            if content % FRAMES_PER_SAMPLE == 0 and content:
                yield sample | {"json": {"video": record["id"], "parts": parts}}
                sample, parts = {}, []
            sample["__key__"] = sample.get("__key__", f"{record['id']}-{content:05d}")
            parts.append({"image": f"{content}.jpg", "time": time})
            sample[f"{content}.jpg"] = frames[content]
        yield sample | {"json": {"video": record["id"], "parts": parts}}


def _frames(
    folder: Path, grid: Grid, video: str, decode: Callable[[bytes], np.ndarray]
) -> Iterator[bytes]:
    per_sheet = grid.columns * grid.rows
    for sheet in range(-(-COUNT // per_sheet)):
        pixels = decode((folder / "media" / f"{video}_{sheet}.webp").read_bytes())
        for cell in range(min(per_sheet, COUNT - sheet * per_sheet)):
            top, left = cell // grid.columns * grid.height, cell % grid.columns * grid.width
            tile = pixels[top : top + grid.height, left : left + grid.width]
            yield cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _photo(path: Path) -> bytes:
    return encode(simplejpeg.decode_jpeg(path.read_bytes()))


def _key(name: str) -> str:
    return f"{int(Path(name).stem):09d}"
