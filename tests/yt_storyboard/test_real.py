"""The real sheet, the real specification and player response, as a data set."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.build_yt_storyboard import main
from pipelines.storyboards.levels import Level, timing
from pipelines.storyboards.records import choose_track, parse_video
from tests.yt_storyboard.test_build import manifest, samples

VIDEO = "WhWc3b3KhnY"
WIDTH, HEIGHT, COUNT, INTERVAL_S, DURATION_S = 107, 45, 94, 5, 464


@pytest.fixture
def media(sample_data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / f"{VIDEO}_L1_M0.webp").symlink_to(sample_data / f"storyboard/{VIDEO}_L1_M0.webp")
    (folder / f"{VIDEO}.en.vtt").symlink_to(sample_data / "subtitles/sample.vtt")
    return folder


def build(tmp_path: Path, media: Path, record: dict[str, Any], *more: str) -> Path:
    (tmp_path / "videos.jsonl").write_text(json.dumps(record) + "\n")
    words = ["--videos", str(tmp_path / "videos.jsonl"), "--out", str(tmp_path / "out")]
    words += ["--runner", "local", "--media", str(media), "--level", "1"]
    assert main([*words, "--sheet-path", "{id}_L{level}_M{sheet}.webp", *more]) == 0
    return tmp_path / "out"


def spec_of(sample_data: Path) -> str:
    return (sample_data / f"storyboard/{VIDEO}.spec.txt").read_text()


def test_every_frame_of_the_real_sheet(sample_data: Path, media: Path, tmp_path: Path) -> None:
    record = {"id": VIDEO, "spec": spec_of(sample_data), "duration": DURATION_S}
    out = build(tmp_path, media, record, "--max-positions", "1000")
    found = list(samples(out))
    assert len(found) == 4 == manifest(out).records.kept and manifest(out).links.kept == 2
    images = [image for sample in found for image in sample.images]
    assert [image.time_s for image in images] == [float(INTERVAL_S * k) for k in range(COUNT)]
    sheet = np.asarray(Image.open(media / f"{VIDEO}_L1_M0.webp").convert("RGB")).astype(int)
    assert sheet[-HEIGHT:, 4 * WIDTH :].max() < 16, "cells behind the last frame are black"
    for number, image in enumerate(images):
        top, left = number // 10 * HEIGHT, number % 10 * WIDTH
        cell = sheet[top : top + HEIGHT, left : left + WIDTH]
        tile = np.asarray(Image.open(io.BytesIO(image.image or b""))).astype(int)
        assert tile.shape == cell.shape and abs(tile - cell).mean() < 4, number
    texts = " ".join(sample.text for sample in found).strip()
    assert texts == " ".join(f"Caption text #{n}" for n in range(1, 17))


def info_json(video: str, levels: list[Level], duration_s: float) -> dict[str, Any]:
    """What yt-dlp makes of a specification (extractor/youtube, `_extract_storyboard`)."""
    formats = []
    for number, level in enumerate(reversed(levels)):
        num_sheets = level.count / (level.columns * level.rows)
        fragments = [
            {
                "url": url,
                "duration": min(duration_s / num_sheets, duration_s - m * duration_s / num_sheets),
            }
            for m, url in enumerate(level.sheet_addresses)
        ]
        names = ("width", "height", "columns", "rows")
        sizes = {name: getattr(level, name) for name in names}
        formats.append(
            {"format_id": f"sb{number}", "fps": level.count / duration_s, "fragments": fragments}
            | sizes
        )
    return {"id": video, "duration": duration_s, "formats": [*formats, {"format_id": "18"}]}


def test_ytdlp_loses_the_interval_and_it_is_found_again(sample_data: Path) -> None:
    player = (sample_data / "storyboard/player_response.json").read_text()
    spring = {"id": VIDEO, "spec": spec_of(sample_data), "duration": DURATION_S}
    for text in (player, json.dumps(spring)):
        given = parse_video(text)
        assert given.duration_s is not None
        info = parse_video(json.dumps(info_json(given.id, given.levels, given.duration_s)))
        assert [v.number for v in info.levels] == [v.number for v in reversed(given.levels)]
        for wanted, found in zip(given.levels, reversed(info.levels), strict=True):
            assert (found.count, found.sheet_addresses) == (wanted.count, wanted.sheet_addresses)
            times, real = timing(found, given.duration_s), timing(wanted, given.duration_s)
            assert times.interval_s == real.interval_s
            assert times.source == ("uniform" if wanted.interval_s == 0 else "recovered")


def test_the_real_player_response(sample_data: Path) -> None:
    video = parse_video((sample_data / "storyboard/player_response.json").read_text())
    assert (video.id, video.duration_s, video.problems) == ("F1xioXWb8CY", 1509.0, [])
    assert [(v.width, v.count, v.num_sheets, v.interval_s) for v in video.levels] == [
        (48, 100, 1, 0.0),
        (80, 152, 2, 10.0),
        (160, 152, 7, 10.0),
    ]
    track = choose_track(video.tracks, "en")
    assert track is not None and not track.is_automatic
    assert (track.url or "").endswith("fmt=json3") and "fmt=srv3" not in (track.url or "")
    assert choose_track(video.tracks, "de") is None


def test_emus_own_records(media: Path, tmp_path: Path) -> None:
    (media / f"{VIDEO}_0.webp").symlink_to(media / f"{VIDEO}_L1_M0.webp")
    record = {
        "id": VIDEO,
        "sb": {"0": [1070, 450, 10, 10, COUNT, "image/webp"]},
        "subtitle": [{"text": "Spring", "start": 7.5}],
        "duration": DURATION_S,
    }
    (tmp_path / "emu.jsonl").write_text(json.dumps(record))
    out = str(tmp_path / "out")
    words = ["--videos", str(tmp_path / "emu.jsonl"), "--out", out, "--media", str(media)]
    assert main([*words, "--runner", "local"]) == 0
    found = list(samples(tmp_path / "out"))
    times = [image.time_s for sample in found for image in sample.images]
    assert times == [float(INTERVAL_S * k) for k in range(COUNT)]
    assert found[0].meta["interval_source"] == "recovered" and found[0].text == "Spring"
