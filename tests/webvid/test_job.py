"""WebVid end to end: the synthetic world, real clips, faulty decoders; every row is kept or has its reason."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.build_webvid import main
from pipelines.core.pipeline import Rejected
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora.webvid import rules as webvid
from pipelines.images.normalise import ImageConfig
from pipelines.miniworld.clips import ClipsSummary, encode_clip, read_truth, write_world
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.server import ImageServer
from pipelines.transforms import frames
from pipelines.transforms.frames import VideoContent
from pipelines.videos.decode import DECODERS
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.manifest import Manifest, manifest_from_json
from schemas.sample import Sample
from schemas.shard import LEDGERS, SHARDS, read_tar
from schemas.tables import LEDGER
from tests.videos import faults
from tests.videos.test_decode import numbered_frames

REASONS = {
    "cut": "video_truncated",
    "sound": "video_stream_missing",
    "no_frames": "video_without_frames",
    "no_video": "not_a_video",
    "missing": "media_missing",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClipsSummary]:
    """Clips, half of them with a fault."""
    folder = tmp_path_factory.mktemp("clips") / "world"
    return folder, write_world(MiniworldConfig(num_documents=24, bad_share=0.5), folder)


def built(out: Path, *options: object) -> Manifest:
    arguments = ["--out", out, "--runner", "local", "--side", "64", *options]
    assert main([str(a) for a in arguments]) == 0
    return manifest_from_json((out / "manifest.json").read_text())


def samples_of(out: Path, manifest: Manifest) -> list[Sample]:
    samples: list[Sample] = []
    for shard in manifest.shards:
        with (out / SHARDS / f"{shard.name}.tar").open("rb") as file:
            samples += read_tar(file)
    return samples


def ledger_of(out: Path, manifest: Manifest) -> list[dict[str, Any]]:
    storage = Storage(str(out))
    paths = [f"{LEDGERS}/{shard.name}.parquet" for shard in manifest.shards]
    return [row for path in paths for row in read_parquet(storage, path, LEDGER).to_pylist()]


def files_of(out: Path) -> dict[Path, bytes]:
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_the_synthetic_world_is_built_as_its_counts_say(
    tmp_path: Path, world: tuple[Path, ClipsSummary]
):
    folder, summary = world
    options = ("--metadata", folder / "clips.csv", "--media", folder / "images")
    manifest = built(tmp_path / "one", *options, "--samples-per-shard", 7)
    assert (manifest.records.total, manifest.records.kept) == (summary.num_rows, summary.num_kept)
    faults_found = {REASONS[f]: n for f, n in summary.num_by_fault.items() if f in REASONS}
    assert manifest.links.dropped == faults_found
    assert manifest.records.dropped == {
        "no_clip": sum(faults_found.values()),
        "caption_only_metadata": summary.num_by_fault["only_metadata"],
    }
    truth = {row["videoid"]: row for row in read_truth(folder)}
    samples = samples_of(tmp_path / "one", manifest)
    assert len(samples) == summary.num_kept
    for sample in samples:
        row = truth[sample.meta["videoid"]]
        assert [s.kind for s in sample.segments] == ["image"] * 8 + ["text"]
        times = [s.time_s for s in sample.images]
        assert times == sorted(times, key=float) and times[0] is not None
        assert sample.text.rstrip(".") == row["caption"]
        assert sample.meta["caption"] == row["name"]
        assert bool(sample.meta["removed"]) == (row["name"] != row["caption"])
        assert sample.meta["clip"]["decoder"] == "decord"
    assert manifest.config["frames"]["decoder"] == "auto"
    assert set(manifest.config["decoders"]) == {"decord", "pyav"}
    again = built(tmp_path / "two", *options, "--samples-per-shard", 7)
    assert again == manifest
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_links_are_fetched_and_failures_are_retried(
    tmp_path: Path, world: tuple[Path, ClipsSummary]
):
    folder, summary = world
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    lost = images / "videos/000001_000050/10000.mp4"
    whole = lost.read_bytes()
    lost.write_bytes(whole[: len(whole) // 2])
    with ImageServer(images) as server:
        options = ("--metadata", folder / "clips.csv", "--fetch.allow-host", server.allow_host)
        first = built(tmp_path / "out", *options)
        assert first.links.dropped["not_found"] == summary.num_by_fault["missing"]
        assert first.records.kept == summary.num_kept - 1
        lost.write_bytes(whole)
        second = built(tmp_path / "out", *options, "--retry-failed")
    assert second.records.kept == summary.num_kept
    assert "clips-0000001" in {s.key for s in samples_of(tmp_path / "out", second)}


def test_a_clip_of_several_rows_is_fetched_once_and_has_random_frames_by_their_keys(
    tmp_path: Path, world: tuple[Path, ClipsSummary]
):
    folder, _ = world
    header, *rows = (folder / "clips.csv").read_text().splitlines(keepends=True)
    good = rows[0]  # its clip has no fault
    (tmp_path / "twice.csv").write_text("".join([header, good, good, good]))
    frames: dict[str, list[list[int]]] = {}
    with ImageServer(folder / "images") as server:
        for name, choice in (("one", "random"), ("two", "random"), ("even", "uniform")):
            options = ["--metadata", tmp_path / "twice.csv", "--frames.choice", choice]
            options += ["--frames.num-frames", 3, "--fetch.allow-host", server.allow_host]
            manifest = built(tmp_path / name, *options)
            found = samples_of(tmp_path / name, manifest)
            frames[name] = [sample.meta["clip"]["frame_index"] for sample in found]
    assert frames["one"] == frames["two"]
    assert len({tuple(some) for some in frames["one"]}) == 3, "every row has its own"
    assert len({tuple(some) for some in frames["even"]}) == 1


def test_real_rows_with_real_clips(tmp_path: Path, sample_data: Path):
    """The published rows, flat in a folder; five of them get a real clip."""
    table = sample_data / "webvid/webvid_rows.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    media = tmp_path / "media"
    media.mkdir()
    clips = sorted((sample_data / "videos").glob("*.mp4"))
    for row, clip in zip(rows, clips, strict=False):
        shutil.copy(clip, media / f"{row['videoid']}.mp4")
    manifest = built(
        tmp_path / "out", "--metadata", table, "--media", media, "--frames.num-frames", 4
    )
    assert (manifest.records.total, manifest.records.kept) == (20, len(clips))
    assert manifest.links.dropped == {"media_missing": 15}
    samples = samples_of(tmp_path / "out", manifest)
    assert [s.meta["videoid"] for s in samples] == [r["videoid"] for r in rows[:5]]
    assert [len(s.images) for s in samples] == [4] * 5
    assert samples[1].meta["caption"] == "Horse grazing - seperated on green screen"
    assert samples[1].text == "Horse grazing"
    assert samples[0].meta["columns"]["page_idx"] == "27732"


def test_parquet_rows_give_the_same_samples(tmp_path: Path, world: tuple[Path, ClipsSummary]):
    folder, _ = world
    with (folder / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    outs = {}
    for table in (folder / "clips.csv", tmp_path / "clips.parquet"):
        out = tmp_path / table.suffix[1:]
        options = ("--metadata", table, "--media", folder / "images", "--limit", 6)
        outs[out.name] = samples_of(out, built(out, *options))
    for one, other in zip(outs["csv"], outs["parquet"], strict=True):
        assert (one.key, one.segments) == (other.key, other.segments)


def test_a_clip_that_hangs_or_crashes_its_decoder_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        frames, "DECODERS", {**DECODERS, "pyav": f"{faults.__name__}:faulty_frames"}
    )
    limits = DecodeLimits(max_seconds=2.0)
    content = VideoContent(FrameConfig(decoder="pyav"), ImageConfig(side=64), limits)
    clip = encode_clip(numbered_frames(12), 12)
    marked = {mark: clip + len(b"xxxx" + mark).to_bytes(4) + mark for mark in _MARKS}
    found = []
    for body in (clip, marked[faults.MARK_HANG], clip, marked[faults.MARK_CRASH], clip):
        try:
            found.append(len(content.convert(body)["frames"]))
        except Rejected as rejected:
            found.append(rejected.reason)
    content.close()
    assert found == [8, "video_timeout", 8, "video_decoder_died", 8]


_MARKS = (faults.MARK_HANG, faults.MARK_CRASH)


@pytest.mark.parametrize(
    ("folders", "path"),
    [
        (["videos/000001_000050"], "videos/{page_dir}/{videoid}.mp4"),
        (["000001_000050", "other"], "{page_dir}/{videoid}.mp4"),
        (["other"], "{videoid}.mp4"),
    ],
)
def test_the_layout_of_a_media_folder_is_found(tmp_path: Path, folders: list[str], path: str):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert webvid.found_path(str(tmp_path)) == path


@pytest.mark.parametrize("path", ["{page_dir}.mp4", "{videoid}/{name}", "{videoid", "{}"])
def test_a_path_that_names_no_clip_is_refused(path: str):
    with pytest.raises(ValueError, match="path is"):
        webvid.Rules(path=path)


def test_rows_that_lead_nowhere_have_reasons(tmp_path: Path):
    table = tmp_path / "rows.csv"
    rows = [
        ("videoid", "name", "page_dir", "contentUrl"),
        ("1", "", "a", "http://x.example/1.mp4"),
        ("", "a cat", "a", "http://x.example/2.mp4"),
        ("3", "a cat " * 2000, "a", ""),
        ("../../etc/passwd", "a cat", "..", ""),
        ("5", "a cat", "a", ""),
    ]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "media").mkdir()
    arguments = ["--metadata", table, "--media", tmp_path / "media", "--out", tmp_path / "out"]
    path = ("--path", "{page_dir}/{videoid}.mp4", "--runner", "local")
    assert main([str(a) for a in (*arguments, *path)]) == 1
    manifest = manifest_from_json((tmp_path / "out/manifest.json").read_text())
    assert manifest.records.dropped == {
        "caption_missing": 1,
        "videoid_missing": 1,
        "caption_too_long": 1,
        "no_clip": 2,
    }
    assert manifest.links.dropped == {"media_outside": 1, "media_missing": 1}
    rows_of = [r for r in ledger_of(tmp_path / "out", manifest) if r["slot"] is None]
    assert sorted(r["record"] for r in rows_of) == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["config"]["media"] is True
