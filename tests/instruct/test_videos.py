"""Videos of dialogues become frames at their places, with their times; the forms of Video-ChatGPT and VideoChat."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.build_instruct import main
from jobs.inspect_shards import main as inspect
from pipelines.corpora.instruct.media import is_video
from pipelines.corpora.instruct.rules import Rules
from pipelines.miniworld.clips import encode_clip
from pipelines.videos.frames import FrameConfig
from schemas.dialogue import VIDEO_SYSTEM_MESSAGE
from schemas.manifest import manifest_from_json
from schemas.sample import Sample
from tests.instruct.dialogues import build, reasons, samples, talk
from tests.mmc4.pages import COLOURS, colour_of, write_images

SEEN = f"system: {VIDEO_SYSTEM_MESSAGE}"
FRAMES = ["user: [red] 0.0", "user: [green] 1.0", "user: [blue] 2.0"]


def clip() -> bytes:
    """Three seconds, one colour each."""
    frames = [np.full((48, 64, 3), COLOURS[c], np.uint8) for c in ("red", "green", "blue")]
    return encode_clip(frames, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    media = write_images(tmp_path / "media")
    (media / "v_a.mp4").write_bytes(clip())
    (media / "cut.mp4").write_bytes(clip()[:-400])
    return tmp_path


def shown(sample: Sample) -> list[str]:
    return [
        f"{s.role}: {s.text if s.kind == 'text' else f'[{colour_of(s.image)}] {s.time_s}'}"
        for s in sample.segments
    ]


def with_answer(*segments: str) -> list[str]:
    return [SEEN, *segments, "assistant: r"]


CASES: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "raw, even row": ({"video_id": "v_a", "q": "q", "a": "r"}, with_answer("user: q", *FRAMES)),
    "raw, odd row": ({"video_id": "v_a.mp4", "q": "q", "a": "r"}, with_answer(*FRAMES, "user: q")),
    "training": (
        talk("u:q\n<video>", "a:r", id="v_a", video="v_a.pkl"),
        with_answer("user: q", *FRAMES),
    ),
    "an image's place": (
        talk("u:<image>\nq", "a:r", video="v_a.mp4"),
        with_answer(*FRAMES, "user: q"),
    ),
    "videochat": (
        {"video": "v_a.mp4", "QA": [{"q": "q", "a": "r"}]},
        with_answer(*FRAMES, "user: q"),
    ),
    "an image and a video": (
        talk("u:<video> or <image>?", "a:r", image="grey.png", video="v_a.mp4"),
        [*FRAMES, "user: or", "user: [grey] None", "user: ?", "assistant: r"],
    ),
}


def test_videos_become_frames_at_their_places(folder: Path) -> None:
    build(folder, [record for record, _ in CASES.values()], Rules(frames=FrameConfig(num_frames=3)))
    found = samples(folder / "out")
    assert [shown(sample) for sample in found] == [list(wanted) for _, wanted in CASES.values()]
    last = found[-1].meta
    assert last["image_slot"] == [1, 1, 1, 0] and last["image_url"] == ["grey.png", "v_a.mp4"]
    assert [(c["slot"], c["duration_s"]) for c in last["clips"]] == [(1, 3.0)]
    assert all(sample.meta["clips"][0]["decoder"] for sample in found)


def test_missing_and_damaged_videos_cost_their_dialogue(folder: Path) -> None:
    records = [
        {"video_id": "v_b", "q": "q", "a": "r"},
        talk("u:q", "a:r", video="cut.mp4"),
        talk("u:q", "a:r", video="../v_a.mp4"),
        talk("u:<video> <video>", "a:r", video="v_a.mp4"),
        talk("u:q", "a:r", video="v_a.mp4"),
    ]
    manifest = build(folder, records)
    assert manifest.records.dropped == {"medium_lost": 3, "placeholder_without_medium": 1}
    assert set(manifest.links.dropped) == {"media_missing", "media_outside", "video_truncated"}
    assert reasons(folder / "out")[5] == (None, None)


def test_a_retry_takes_kept_frames_from_the_shard(folder: Path) -> None:
    (folder / "d.jsonl").write_text(
        "".join(f"{json.dumps({'video_id': v, 'q': 'q', 'a': 'r'})}\n" for v in ("v_a", "v_b"))
    )
    out = folder / "out"
    words = ["--dialogues", folder / "d.jsonl", "--media", folder / "media", "--out", out]
    options = [str(word) for word in (*words, "--runner", "local")]
    assert main(options) == 0
    before = samples(out)
    shutil.move(folder / "media/v_a.mp4", folder / "media/v_b.mp4")
    assert main([*options, "--retry-failed"]) == 0
    after = samples(out)
    assert [sample.key for sample in after] == ["d-0000001", "d-0000002"] and after[0] == before[0]
    assert inspect([str(out), "--lint"]) == 0


def test_real_clips(sample_data: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in (sample_data / "videos").glob("*.mp4"))
    records = [{"video": name, "QA": [{"q": "What happens?", "a": "Much."}]} for name in names]
    (tmp_path / "d.json").write_text(json.dumps(records))
    out = tmp_path / "out"
    words = ["--dialogues", tmp_path / "d.json", "--media", sample_data / "videos", "--out", out]
    assert main([str(word) for word in (*words, "--runner", "local")]) == 0
    manifest = manifest_from_json((out / "manifest.json").read_text())
    assert manifest.records.kept == len(names) >= 4
    for sample in samples(out):
        times = [image.time_s or 0.0 for image in sample.images]
        assert times == sorted(times) and 2 <= len(times) <= 8


def test_containers_are_told_from_images() -> None:
    assert is_video(clip())
    assert is_video(b"RIFF\0\0\0\0AVI LIST") and is_video(b"\x1aE\xdf\xa3" + b"\0" * 20)
    for body in (b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif", b"\xff\xd8\xff", b"<html>", b""):
        assert not is_video(body)
