"""Inputs of `benchmarks.corpora`: metadata and media of each corpus, and the bare loop over the same media."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from benchmarks import corpora_by_hand as by_hand
from benchmarks import storyboards
from benchmarks.image_server import image_server
from benchmarks.photos import synthetic_photo
from benchmarks.videos import NUM_FRAMES, bare_decord, encode
from pipelines.miniworld.clips import encode_clip

IMAGES_PER_DOCUMENT = 4
CAPTION = "a few words on what the photo shows"


@dataclass(frozen=True)
class BuildInput:
    """What a job takes, and the loop that does the same by hand."""

    job: Callable[[Sequence[str]], int]
    words: tuple[str, ...]
    """Options of the job, without --out."""
    unit: str
    count: int
    """Units of a whole build."""
    count_of_one: int
    """Units of its first record."""
    num_images: int
    """Images that the dataset holds in the end."""
    bare: Callable[[], None]
    """The images alone."""
    by_hand: Callable[[], Iterator[by_hand.Sample]]
    """Samples with their texts, to be written."""


def pairs(folder: Path, num: int) -> BuildInput:
    """LAION rows whose links are files of a media folder."""
    from jobs.build_laion import main

    _rows([f"{n}.jpg" for n in range(num)], folder / "rows.parquet")
    words = ("--metadata", str(folder / "rows.parquet"), "--media", str(_photos(folder, num)))
    return _of_photos(main, words, num, 1, folder, by_hand.pair_samples)


def documents(folder: Path, num_images: int) -> BuildInput:
    """MMC4 documents of four images and five sentences."""
    from jobs.build_mmc4 import main

    per = IMAGES_PER_DOCUMENT
    with (folder / "docs.jsonl").open("w") as lines:
        for first in range(0, num_images, per):
            infos = [
                {
                    "image_name": f"{first + n}.jpg",
                    "raw_url": f"{first + n}.jpg",
                    "matched_text_index": n,
                    "matched_sim": 0.5,
                }
                for n in range(per)
            ]
            matrix = [[0.5 if n == m else 0.1 for m in range(per + 1)] for n in range(per)]
            document = {
                "url": f"http://page.example/{first}",
                "text_list": [f"{CAPTION}, number {first + n}." for n in range(per + 1)],
                "image_info": infos,
                "similarity_matrix": matrix,
            }
            lines.write(json.dumps(document) + "\n")
    words = ("--documents", str(folder / "docs.jsonl"), "--media", str(_photos(folder, num_images)))
    return _of_photos(main, words, num_images, per, folder, by_hand.document_samples)


def dialogues(folder: Path, num: int) -> BuildInput:
    """Dialogues of LLaVA, each about one image."""
    from jobs.build_instruct import main

    records = [
        {
            "id": f"{n:012d}",
            "image": f"{n}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is in photo {n}?"},
                {"from": "gpt", "value": f"{CAPTION}, number {n}."},
            ],
        }
        for n in range(num)
    ]
    (folder / "llava.json").write_text(json.dumps(records))
    words = ("--dialogues", str(folder / "llava.json"), "--media", str(_photos(folder, num)))
    return _of_photos(main, words, num, 1, folder, by_hand.dialogue_samples)


def clips(folder: Path, num: int, sample_data: Path | None) -> BuildInput:
    """Rows of WebVid with local clips: those of a folder in turn, or synthetic ones."""
    from jobs.build_webvid import main

    media = folder / "media"
    media.mkdir()
    bodies = _clips(sample_data)
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["videoid", "name", "page_dir", "contentUrl"])
        for n in range(num):
            (media / f"{n}.mp4").write_bytes(bodies[n % len(bodies)])
            rows.writerow([n, f"{CAPTION} {n}", "1_50", f"http://clips.example/{n}.mp4"])

    def bare() -> None:
        for path in _files(media):
            assert len(bare_decord(path.read_bytes())) == NUM_FRAMES

    words = ("--metadata", str(folder / "rows.csv"), "--media", str(media))
    words += ("--path", "{videoid}.mp4", "--frames.decoder", "decord")
    return BuildInput(
        main, words, "clip", num, 1, num * NUM_FRAMES, bare, lambda: by_hand.clip_samples(folder)
    )


def sheets(folder: Path, num: int, level: str) -> BuildInput:
    """Records of videos with subtitles, and sheets of frames of 107 x 45 (small) or 320 x 180 (large)."""
    from jobs.build_yt_storyboard import main

    grid = storyboards.GRIDS[level]
    storyboards.write_videos(folder, grid, storyboards.Options(videos=num))
    words = ("--videos", str(folder / "videos.jsonl"), "--media", str(folder / "media"))
    words += ("--sheet-path", "{id}_{sheet}.webp", "--subtitle-path", "None")
    count = num * storyboards.COUNT
    bare = lambda: storyboards.bare(folder, grid, storyboards.opencv)  # noqa: E731
    return BuildInput(
        main,
        words,
        "frame",
        count,
        storyboards.COUNT,
        count,
        bare,
        lambda: by_hand.storyboard_samples(folder, grid, storyboards.opencv),
    )


@contextmanager
def links(folder: Path, num: int) -> Iterator[BuildInput]:
    """LAION rows whose links lead to a server on this machine."""
    import trustme

    from jobs.build_laion import main

    certificate = folder / "server.pem"
    authority = trustme.CA()
    certificate.write_bytes(
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes()
    )
    photos = [synthetic_photo(640, 480, seed) for seed in range(32)]
    with image_server([photos[n % 32] for n in range(num)], certificate) as ports:
        address = f"127.0.0.1:{ports['http']}"
        _rows([f"http://{address}/{n}.jpg" for n in range(num)], folder / "rows.parquet")
        words = ("--metadata", str(folder / "rows.parquet"), "--fetch.per-host", "64")
        words += ("--fetch.allow-host", f"127.0.0.1={address}")
        yield BuildInput(main, words, "image", num, 1, num, lambda: None, lambda: iter(()))


def _of_photos(
    job: Callable[[Sequence[str]], int],
    words: tuple[str, ...],
    num: int,
    num_of_first: int,
    folder: Path,
    samples: Callable[[Path], Iterator[by_hand.Sample]],
) -> BuildInput:
    bare = lambda: _bare_images(folder / "media")  # noqa: E731
    return BuildInput(job, words, "image", num, num_of_first, num, bare, lambda: samples(folder))


def _rows(urls: list[str], path: Path) -> None:
    texts = [f"{CAPTION} {n}" for n in range(len(urls))]
    pq.write_table(pa.table({"URL": urls, "TEXT": texts}), path)


def _photos(folder: Path, num: int) -> Path:
    """A folder of JPEG files of 640 x 480 pixels."""
    media = folder / "media"
    media.mkdir()
    photos = [synthetic_photo(640, 480, seed) for seed in range(min(32, num))]
    for n in range(num):
        (media / f"{n}.jpg").write_bytes(photos[n % len(photos)])
    return media


def _bare_images(media: Path) -> None:
    for path in _files(media):
        assert encode(simplejpeg.decode_jpeg(path.read_bytes()))


def _files(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder))


def _clips(sample_data: Path | None) -> list[bytes]:
    if sample_data is not None:
        return [path.read_bytes() for path in sorted((sample_data / "videos").glob("*.mp4"))]
    return [_clip(640, 360, seed) for seed in range(4)]


def _clip(width: int, height: int, seed: int) -> bytes:
    """Three seconds of a view that moves over a photo."""
    photo = simplejpeg.decode_jpeg(synthetic_photo(width + 90, height + 90, seed))
    frames = [photo[n : n + height, n : n + width] for n in range(90)]
    return encode_clip([np.ascontiguousarray(frame) for frame in frames], 30)
