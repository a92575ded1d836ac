"""Small published datasets, written as the pipelines write them: tars, index, manifest."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from emu.tokenizer import EmuTokenizer, train_tokenizer
from schemas.dialogue import system_message
from schemas.manifest import MANIFEST_FILE, Fingerprint, Manifest, ShardEntry, Tally
from schemas.sample import Sample, Segment
from schemas.shard import INDEXES, SHARDS, shard_name, tar_bytes
from schemas.tables import INDEX

COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "yellow")


def square_image(number: int, side: int = 24, format: str = "PNG") -> bytes:
    """A square in one of the colours, on another one."""
    image = Image.new("RGB", (side, side), COLOURS[number % len(COLOURS)])
    image.paste(COLOURS[(number + 3) % len(COLOURS)], (4, 4, 4 + number % 9, 8))
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def image_segment(number: int) -> Segment:
    return Segment.of_image(square_image(number), "png", 24, 24)


def pair(number: int, corpus: str = "pairs") -> Sample:
    text = Segment.of_text(f"a {COLOURS[number % len(COLOURS)]} square, number {number}")
    return Sample(f"pair-{number:05d}", corpus, (image_segment(number), text))


def document(number: int, num_images: int = 3, num_sentences: int = 6) -> Sample:
    """An interleaved document: sentence 2 i + 1 has image i before it."""
    segments: list[Segment] = []
    matched = []
    for index in range(num_sentences):
        if index % 2 == 1 and index // 2 < num_images:
            segments.append(image_segment(number + index))
            matched.append(index)
        colour = COLOURS[(number + index) % len(COLOURS)]
        segments.append(Segment.of_text(f"Sentence {index} of page {number} is about {colour}."))
    return Sample(f"doc-{number:05d}", "mmc4", tuple(segments), {"matched_text_index": matched})


def timed_image(number: int, time_s: float) -> Segment:
    return Segment.of_image(square_image(number), "png", 24, 24, time_s=time_s)


def clip(number: int, num_frames: int = 8) -> Sample:
    """A video clip: frames with their times, and a caption without."""
    frames = [timed_image(number + index, index * 0.5) for index in range(num_frames)]
    text = Segment.of_text(f"clip {number} of a {COLOURS[number % len(COLOURS)]} square")
    return Sample(f"clip-{number:05d}", "webvid", (*frames, text))


def storyboard(number: int, num_frames: int = 4) -> Sample:
    """A storyboard: a frame every 10 seconds, a subtitle 4 seconds after each."""
    segments: list[Segment] = []
    for index in range(num_frames):
        segments.append(timed_image(number + index, 10.0 * index))
        colour = COLOURS[(number + index) % len(COLOURS)]
        segments.append(Segment.of_text(f"Sentence {index} about {colour}.", time_s=10 * index + 4))
    return Sample(f"board-{number:05d}", "yt_storyboard", tuple(segments))


def dialogue(
    number: int, num_images: int = 1, num_answers: int = 2, is_video: bool = False
) -> Sample:
    """Questions with answers; the images, or the frames of one video, come before the first."""
    times = [0.5 * n if is_video else None for n in range(num_images)]
    frames = [
        Segment.of_image(square_image(number + n), "png", 24, 24, time_s=time, role="user")
        for n, time in enumerate(times)
    ]
    message = system_message(0, 1) if is_video else system_message(num_images, 0)
    segments = [Segment.of_text(message, role="system")] if message else []
    for index in range(num_answers):
        colour = COLOURS[(number + index) % len(COLOURS)]
        segments.append(Segment.of_text(f"Sentence {index} about?", role="user"))
        segments += frames if index == 0 else []
        segments.append(Segment.of_text(f"A {colour} square.", role="assistant"))
    return Sample(f"talk-{number:05d}", "instruct", tuple(segments))


def write_dataset(root: Path, samples: Sequence[Sample], shard_size: int = 10) -> Path:
    """The samples as a dataset of shards of `shard_size`."""
    corpus = samples[0].corpus if samples else "pairs"
    for folder in (SHARDS, INDEXES):
        (root / folder).mkdir(parents=True, exist_ok=True)
    entries = []
    for number, start in enumerate(range(0, len(samples), shard_size)):
        name, rows = shard_name(corpus, number), samples[start : start + shard_size]
        data, index = tar_bytes(rows, name)
        (root / SHARDS / f"{name}.tar").write_bytes(data)
        pq.write_table(INDEX.table(index), root / INDEXES / f"{name}.parquet")
        digest = hashlib.sha256(data).hexdigest()
        images = sum(len(sample.images) for sample in rows)
        entries.append(ShardEntry(name, len(rows), images, len(data), digest))
    records = Tally(len(samples), len(samples))
    manifest = Manifest(corpus, tuple(entries), records, Tally(0, 0), Fingerprint("i", "c", "c"))
    (root / MANIFEST_FILE).write_text(manifest.to_json())
    return root


def small_tokenizer(path: Path) -> EmuTokenizer:
    """A tokenizer of the words of the datasets above, saved at `path`."""
    texts = [document(number).text for number in range(40)]
    texts += [pair(number).text for number in range(40)]
    train_tokenizer(texts, 400, path)
    return EmuTokenizer.load(path)
