"""Frames of a video as a piece of a prompt; the videos are made here."""

import builtins
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.data.video import Video, VideoError, frame_indices, read_frames
from emu.generate.engine import Engine
from emu.generate.prompts import PromptTooLong, TextOptions


def write_video(path: Path, num_frames: int, width: int = 64, height: int = 48) -> Path:
    """Frame i is grey of level 10 i."""
    code = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, 10, (width, height))
    assert writer.isOpened()
    for level in range(num_frames):
        writer.write(np.full((height, width, 3), 10 * level, np.uint8))
    writer.release()
    return path


def places_seen(frames: list[object]) -> list[int]:
    return [round(float(np.asarray(frame).mean()) / 10) for frame in frames]


def test_the_released_rule_chooses_the_frames(tmp_path: Path) -> None:
    assert frame_indices(20) == [1, 3, 6, 8, 11, 13, 15, 18]
    assert frame_indices(100) == [6, 18, 31, 43, 56, 68, 80, 93]
    for name in ("clip.mp4", "clip.avi"):
        frames = read_frames(write_video(tmp_path / name, 20))
        assert places_seen(list(frames)) == frame_indices(20)
        assert frames[0].size == (64, 48) and frames[0].mode == "RGB"


@given(st.integers(1, 5000), st.integers(1, 40))
def test_the_rule_stays_inside_any_video(num_total: int, num_frames: int) -> None:
    places = frame_indices(num_total, num_frames)
    assert len(places) == num_frames and places == sorted(places)
    assert places[0] >= 0 and places[-1] < num_total


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7])
def test_a_short_video_repeats_its_frames(tmp_path: Path, num_frames: int) -> None:
    frames = read_frames(write_video(tmp_path / "short.mp4", num_frames))
    assert places_seen(list(frames)) == frame_indices(num_frames)
    assert len(frames) == 8 and set(places_seen(list(frames))) <= set(range(num_frames))


def test_bytes_a_path_and_its_name_are_the_same_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 12)
    wanted = [frame.tobytes() for frame in read_frames(path, 3)]
    for source in (str(path), path.read_bytes()):
        assert [frame.tobytes() for frame in read_frames(source, 3)] == wanted


def test_an_odd_size_can_be_read(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "odd.avi", 12, 63, 47))
    assert places_seen(list(frames)) == frame_indices(12)


def test_a_video_in_a_prompt_is_its_frames(engine: Engine, tmp_path: Path) -> None:
    video = Video(write_video(tmp_path / "clip.mp4", 20))
    encoded = engine.encode(["look: ", video, "what happens?"])
    assert encoded.ids == engine.encode(["look: ", *video.frames(), "what happens?"]).ids
    assert len(encoded.pixels) == 8
    assert len(engine.generate_text([[video, "what happens?"]], TextOptions(max_new_tokens=4))) == 1
    assert len(engine.encode([Video(video.source, 2)]).pixels) == 2


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "clip.mp4", 20).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>not found</html>", whole[:40]):
        with pytest.raises(VideoError, match=f"{len(damaged)} bytes: cannot be read as a video"):
            read_frames(damaged)
    (tmp_path / "page.mp4").write_bytes(b"<html>")
    with pytest.raises(VideoError, match=r"page\.mp4: cannot be read"):
        read_frames(tmp_path / "page.mp4")
    for missing in (tmp_path / "absent.mp4", tmp_path):
        with pytest.raises(FileNotFoundError, match="no video at"):
            read_frames(missing)


def test_a_video_with_too_many_frames_is_refused_before_it_is_read(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="500 images at 10 each"):
        engine.encode([Video(Path("never read"), 500)])
    for wrong in (0, True, 2.0):
        with pytest.raises(ValueError, match="num_frames is"):
            Video(b"", wrong)  # type: ignore[arg-type]


def test_without_decord_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "decord":
            raise ImportError("No module named 'decord'")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "decord", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="pip install decord"):
        read_frames(b"1234")
