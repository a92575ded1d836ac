"""The whole job on the synthetic world: no frame is lost or doubled, every one has its time, the counts are exact."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from emu.tokenizer import EmuTokenizer, train_tokenizer
from jobs.build_yt_storyboard import main
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora.yt_storyboard.rules import REPORT
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.server import ImageServer
from pipelines.miniworld.storyboards import (
    FAULTS,
    SHEET_PATH,
    StoryboardSummary,
    frame_number,
    write_world,
)
from schemas.manifest import Manifest, manifest_from_json
from schemas.sample import Sample
from schemas.shard import LEDGERS, SHARDS, read_tar
from schemas.tables import LEDGER

CONFIG = MiniworldConfig(num_documents=20, num_shards=1, bad_share=0.35, max_things=2)
MOST = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storyboards") / "world"
    summary = write_world(CONFIG, folder)
    assert set(summary.num_records_by_fault) == set(FAULTS), "every fault occurs"
    return folder


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(world, tmp_path_factory.mktemp("built") / "out")


def build(world: Path, out: Path, *more: str, media: Path | None = None) -> Path:
    words = ["--videos", f"{world}/documents/*", "--out", str(out), "--runner", "local"]
    words += ["--media", str(media or world / "images"), "--sheet-path", SHEET_PATH]
    words += ["--max-positions", str(MOST), "--samples-per-shard", "8", *more]
    assert main(words) == 0
    return out


def samples(out: Path) -> Iterator[Sample]:
    for path in sorted((out / SHARDS).glob("*.tar")):
        with path.open("rb") as tar:
            yield from read_tar(tar)


def ledger(out: Path) -> list[dict[str, Any]]:
    names = [f"{LEDGERS}/{path.name}" for path in sorted((out / LEDGERS).iterdir())]
    tables = [read_parquet(Storage(str(out)), name, LEDGER) for name in names]
    return pa.concat_tables(tables).to_pylist()


def manifest(out: Path) -> Manifest:
    return manifest_from_json((out / "manifest.json").read_text())


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def truth(world: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, (world / "truth.jsonl").read_text().splitlines())
    return {row["id"]: row for row in rows}


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def test_every_frame_once_at_its_time(world: Path, built: Path) -> None:
    found: dict[str, list[list[float]]] = {}
    for sample in samples(built):
        frames = found.setdefault(sample.meta["video_id"], [])
        assert sample.meta["positions"] <= MOST and sample.images
        for image, number in zip(sample.images, sample.meta["frame"], strict=True):
            assert frame_number(pixels(image.image or b"")) == number
            frames.append([number, image.time_s or 0.0])
    wanted = {v: row["frames"] for v, row in truth(world).items() if row["frames"]}
    assert found == wanted


def test_texts_stand_in_time_order_between_the_frames(world: Path, built: Path) -> None:
    texts: dict[str, list[str]] = {}
    for sample in samples(built):
        times = [(s.time_s, s.kind == "text") for s in sample.segments]
        assert times == sorted(times)
        spoken = (s.text or "" for s in sample.segments if s.kind == "text")
        texts.setdefault(sample.meta["video_id"], []).extend(spoken)
    for video, row in truth(world).items():
        if row["frames"] and row["fault"] is None:
            assert " ".join(texts[video]) == " ".join(entry["text"] for entry in row["subtitles"])


def test_the_counts_of_the_world_are_those_of_the_dataset(world: Path, built: Path) -> None:
    data = json.loads((world / "summary.json").read_text())
    summary = StoryboardSummary(**{k: v for k, v in data.items() if k != "corpus"})
    found = manifest(built)
    rows = [row for row in ledger(built) if row["slot"] is None]
    assert len({(row["source"], row["record"]) for row in rows}) == summary.num_records
    kept = {(row["source"], row["record"]) for row in rows if row["status"] == "kept"}
    assert len(kept) == summary.num_videos_kept
    assert found.num_images == summary.num_frames
    assert found.num_samples == found.records.kept == sum(row["status"] == "kept" for row in rows)
    assert sum(len(c) for s in samples(built) for c in s.meta["text_cues"]) == summary.num_subtitles
    faults = summary.num_records_by_fault
    for word in ("no_storyboard", "spec_malformed", "malformed_json"):
        assert found.records.dropped[word] == faults[word]
    assert found.links.dropped["sheet_size_unexpected"] == faults["sheet_size"]
    assert found.links.dropped["subtitles_unknown_format"] == faults["bad_subtitles"]


def test_two_builds_give_the_same_bytes(world: Path, built: Path, tmp_path: Path) -> None:
    assert files(build(world, tmp_path / "again")) == files(built)


def test_sheets_from_links_are_those_from_disk(world: Path, built: Path, tmp_path: Path) -> None:
    with ImageServer(world / "images", retry_after_s=0) as server:
        words = ["--videos", f"{world}/documents/*", "--out", str(tmp_path / "o")]
        words += ["--runner", "local", "--fetch.allow-host", server.allow_host]
        assert main([*words, "--max-positions", str(MOST), "--samples-per-shard", "8"]) == 0
    of_disk, of_links = ({} for _ in range(2))
    for out, found in ((built, of_disk), (tmp_path / "o", of_links)):
        for sample in samples(out):
            images = found.setdefault(sample.meta["video_id"], [])
            images.extend(image.image for image in sample.images)
    missing = [v for v, row in truth(world).items() if row["fault"] == "sheet_missing"]
    assert of_links == {v: images for v, images in of_disk.items() if v not in missing}


def test_a_retry_takes_what_was_kept_and_fetches_the_rest(
    world: Path, built: Path, tmp_path: Path
) -> None:
    """Byte for byte what a build makes that finds all at once, though the files of what was kept are gone."""
    media, empty = tmp_path / "media", tmp_path / "empty"
    shutil.copytree(world / "images", media)
    lost = [p for n, p in enumerate(sorted(media.glob("*_l1_*"))) if n % 3 == 0]
    lost += sorted(media.glob("*.vtt"))[::2]
    for path in lost:
        path.unlink()
    out = build(world, tmp_path / "out", media=media)
    assert 0 < manifest(out).num_images < manifest(built).num_images
    empty.mkdir()
    for path in lost:
        shutil.copy(world / "images" / path.name, empty)
    build(world, out, "--retry-failed", media=empty)
    wanted, found = files(built), files(out)
    tars = [name for name in wanted if name.startswith(SHARDS)]
    assert tars and all(found[name] == wanted[name] for name in tars)


def test_options_change_what_they_say(world: Path, built: Path, tmp_path: Path) -> None:
    strict = build(world, tmp_path / "strict", "--require-subtitles")
    assert manifest(strict).records.dropped["no_subtitles"] >= 1
    assert all(any(s.kind == "text" for s in sample.segments) for sample in _first_parts(strict))
    overview = build(world, tmp_path / "overview", "--level", "0", "--subtitle-path", "None")
    for sample in samples(overview):
        assert (
            sample.meta["interval_source"] in ("uniform", "count") and sample.images[0].width == 40
        )
    rounded = build(world, tmp_path / "rounded", "--released-rounding")
    for sample in samples(rounded):
        expected = round(sample.meta["duration_s"] / sample.meta["count"])
        assert (
            sample.meta["interval_s"] == expected and sample.meta["interval_source"] == "released"
        )
    assert REPORT.title in (built / "report.html").read_text()


def test_a_tokenizer_counts_exactly(world: Path, tmp_path: Path) -> None:
    texts = [entry["text"] for row in truth(world).values() for entry in row["subtitles"]]
    train_tokenizer(texts, 300, tmp_path / "tokenizer.model")
    tokenizer = EmuTokenizer.load(tmp_path / "tokenizer.model")
    out = build(world, tmp_path / "o", "--tokenizer", str(tmp_path))
    for sample in samples(out):
        spoken = [s.text or "" for s in sample.segments if s.kind == "text"]
        num_tokens = sum(len(tokenizer.encode_text(text)) for text in spoken)
        assert sample.meta["positions"] == num_tokens + 34 * len(sample.images) + 2 <= MOST


def test_a_text_longer_than_a_sample_is_cut_between_words(world: Path, tmp_path: Path) -> None:
    row = next(row for row in truth(world).values() if row["frames"])
    spec = f"https://h.example/$N|80#60#{row['count']}#5#4#1000#m$M#s"
    long = {"text": "word " * 200_000 + "\x00end", "start": 1.5}
    record = {"id": row["id"], "spec": spec, "duration": 99, "subtitles": [long]}
    (tmp_path / "videos.jsonl").write_text(json.dumps(record))
    words = ["--videos", str(tmp_path / "videos.jsonl"), "--out", str(tmp_path / "o")]
    words += ["--media", str(world / "images"), "--sheet-path", "{id}_l1_m{sheet}.webp"]
    assert main([*words, "--runner", "local"]) == 0
    found = list(samples(tmp_path / "o"))
    assert " ".join(s.text.strip() for s in found).split() == ["word"] * 200_000 + ["end"]
    assert sum(len(s.images) for s in found) == row["count"]
    assert all(s.meta["positions"] <= 2048 for s in found)


def _first_parts(out: Path) -> Iterator[Sample]:
    whole: dict[str, Sample] = {}
    for sample in samples(out):
        held = whole.setdefault(sample.meta["video_id"], sample)
        whole[held.meta["video_id"]] = Sample(
            held.key, held.corpus, (*held.segments, *sample.segments), held.meta
        )
    yield from whole.values()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--sheet-path", "{id}.jpg"], "sheet_path is '{id}.jpg', give a path with {id}, {sheet}"),
        (["--subtitle-path", "{name}.vtt"], "subtitle_path is '{name}.vtt'"),
        (["--max-positions", "35"], "36"),
        (["--tokenizer", "no/such.model"], "no/such.model"),
    ],
)
def test_wrong_options_are_named(
    world: Path, tmp_path: Path, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = ["--videos", f"{world}/documents/*", "--out", str(tmp_path / "o"), "--runner", "local"]
    assert main([*videos, *words]) != 0
    assert problem in capsys.readouterr().err
