"""Frames are those that a viewer sees at their times, upright, whichever decoder reads them; else there is a reason."""

import hashlib
import io
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipelines.core.pipeline import Rejected
from pipelines.images.normalise import ImageConfig
from pipelines.miniworld.clips import encode_clip, without_frames
from pipelines.transforms.frames import VideoContent, frame_work
from pipelines.videos.decode import DECODERS, open_clip
from pipelines.videos.frames import FrameConfig, Timeline, choose_frames

HEIGHT, WIDTH = 64, 96
RED, BLUE = (220, 30, 30), (30, 30, 220)


def numbered_frames(num_frames: int) -> list[np.ndarray]:
    """Frames of one grey each, which tells their number; the top left corner is red, the top right one blue."""
    frames = []
    for number in range(num_frames):
        pixels = np.full((HEIGHT, WIDTH, 3), 40 + 7 * number, np.uint8)
        pixels[:16, :24], pixels[:16, -24:] = RED, BLUE
        frames.append(pixels)
    return frames


def decoded(
    body: bytes, decoder: str = "auto", key: str = "", **frames: Any
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What the work in the child gives for a clip, as pixels."""
    names = DECODERS if decoder == "auto" else [decoder]
    config = {
        "frames": vars(FrameConfig(**frames)),
        "image": vars(ImageConfig(side=64)),
        "decoders": [[name, DECODERS[name]] for name in names],
    }
    value, blobs = frame_work(config)(hashlib.sha256(key.encode()).digest() + body)
    return value, [simplejpeg.decode_jpeg(blob) for blob in blobs]


def number_of(pixels: np.ndarray) -> int:
    height, width = pixels.shape[:2]
    return round((float(pixels[height // 2, width // 2].mean()) - 40) / 7)


def corners(pixels: np.ndarray) -> dict[str, str]:
    """The corners that are red and blue."""
    places = {
        "top left": (4, 4),
        "top right": (4, -5),
        "bottom left": (-5, 4),
        "bottom right": (-5, -5),
    }
    found = {}
    for name, (y, x) in places.items():
        red, _, blue = (int(v) for v in pixels[y, x])
        if abs(red - blue) > 100:
            found["red" if red > blue else "blue"] = name
    return found


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_uniform_frames_are_those_in_the_middle_of_equal_parts(decoder: str):
    value, frames = decoded(encode_clip(numbered_frames(24), 12), decoder, num_frames=4)
    assert [number_of(f) for f in frames] == [3, 9, 15, 21] == value["frame_index"]
    assert [f["time_s"] for f in value["frames"]] == [0.25, 0.75, 1.25, 1.75]
    assert (value["decoder"], value["codec"]) == (decoder, "h264")
    assert (value["num_frames"], value["duration_s"], value["frame_rate"]) == (24, 2.0, 12.0)
    assert (value["width"], value["height"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("keyframe_every", [1, 5, 100])
def test_every_frame_of_a_clip_is_read_at_its_time(decoder: str, keyframe_every: int):
    body = encode_clip(numbered_frames(20), 10, keyframe_every=keyframe_every, has_sound=True)
    value, frames = decoded(body, decoder, num_frames=256)
    assert [number_of(f) for f in frames] == list(range(20))
    assert [f["time_s"] for f in value["frames"]] == [n / 10 for n in range(20)]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_times_of_a_variable_frame_rate_are_true(decoder: str):
    pts = [0, 1, 2, 3, 4, 40, 80, 81, 82, 120]
    value, frames = decoded(encode_clip(numbered_frames(10), 10, pts=pts), decoder, num_frames=4)
    assert [number_of(f) for f in frames] == value["frame_index"]
    shown = [f["time_s"] for f in value["frames"]]
    assert shown == [pts[i] / 10 for i in value["frame_index"]]
    middles = [value["duration_s"] * (2 * n + 1) / 8 for n in range(4)]
    expected = {max(i for i, t in enumerate(pts) if t / 10 <= middle) for middle in middles}
    assert value["frame_index"] == sorted(expected)


def test_random_frames_follow_from_the_key_and_the_seed():
    clip = encode_clip(numbered_frames(24), 12)
    chosen = [
        decoded(clip, "pyav", key, choice="random", seed=seed)[0]["frame_index"]
        for key, seed in (("a", 0), ("a", 0), ("a", 1), ("b", 0))
    ]
    assert chosen[0] == chosen[1] == sorted(set(chosen[0]))
    assert len(chosen[0]) == 8
    assert chosen[0] != chosen[2] and chosen[0] != chosen[3]


def test_keyframes_are_taken_once_each():
    body = encode_clip(numbered_frames(24), 12, keyframe_every=10)
    value, frames = decoded(body, "pyav", choice="keyframes")
    assert value["frame_index"] == [0, 10, 20] == [number_of(f) for f in frames]


ROTATED = {
    0: {"red": "top left", "blue": "top right"},
    90: {"red": "bottom left", "blue": "top left"},
    180: {"red": "bottom right", "blue": "bottom left"},
    270: {"red": "top right", "blue": "bottom right"},
}


@pytest.mark.parametrize("decoder", ["decord", "pyav", "auto"])
@pytest.mark.parametrize("rotation", ROTATED)
def test_the_display_matrix_is_applied(rotation: int, decoder: str):
    _, frames = decoded(encode_clip(numbered_frames(6), 12, rotation=rotation), decoder)
    assert frames[0].shape[:2] == ((HEIGHT, WIDTH) if rotation in (0, 180) else (WIDTH, HEIGHT))
    assert corners(frames[0]) == ROTATED[rotation]


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ((True, False), {"red": "top right", "blue": "top left"}),
        ((False, True), {"red": "bottom left", "blue": "bottom right"}),
    ],
)
def test_flips_are_applied_and_decord_refuses_them(
    flips: tuple[bool, bool], expected: dict[str, str]
):
    body = encode_clip(numbered_frames(6), 12, flips=flips)
    value, frames = decoded(body)
    assert (value["decoder"], corners(frames[0])) == ("pyav", expected)
    with pytest.raises(Rejected, match="video_unsupported"):
        decoded(body, "decord")


def test_a_matrix_that_is_no_right_angle_is_refused():
    with pytest.raises(Rejected, match="video_matrix_unsupported"):
        decoded(encode_clip(numbered_frames(6), 12, rotation=45))


@pytest.mark.parametrize(
    ("aspect", "rotation", "shape"),
    [
        (Fraction(2, 1), None, (32, 96)),
        (Fraction(1, 2), None, (64, 48)),
        (Fraction(2, 1), 90, (96, 32)),
    ],
)
def test_the_sample_aspect_ratio_is_applied(
    aspect: Fraction, rotation: int | None, shape: tuple[int, int]
):
    body = encode_clip(numbered_frames(4), 12, sample_aspect=aspect, rotation=rotation)
    for decoder in ("decord", "pyav"):
        _, frames = decoded(body, decoder)
        assert frames[0].shape[:2] == shape


@pytest.mark.parametrize(
    ("container", "decoder"), [("mov", "decord"), ("matroska", "decord"), ("mpegts", "pyav")]
)
def test_other_containers_are_read_where_that_is_exact(container: str, decoder: str):
    body = encode_clip(numbered_frames(18), 12, format=container)
    value, frames = decoded(body, num_frames=6)
    assert value["decoder"] == decoder
    assert [number_of(f) for f in frames] == value["frame_index"] == [1, 4, 7, 10, 13, 16]


def test_reordered_frames_without_times_are_refused():
    """AVI has times of decoding alone: no frame is found at its time."""
    with pytest.raises(Rejected, match="video_corrupt"):
        decoded(encode_clip(numbered_frames(18), 12, format="avi"))


def avi_with_empty_chunks(num_frames: int = 12, ticks: int = 50) -> bytes:
    """An AVI file at 600 ticks per second: all but every 50th chunk repeat the frame before them and are empty."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream: Any = container.add_stream("ffv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        for number, pixels in enumerate(numbered_frames(num_frames)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = number * ticks, Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_empty_chunks_of_avi_are_no_lost_frames(decoder: str):
    body = avi_with_empty_chunks()
    with av.open(io.BytesIO(body)) as container:
        assert container.streams.video[0].frames == 600, "the header counts them"
    value, frames = decoded(body, decoder, num_frames=4)
    assert value["num_frames"] == 12
    assert [number_of(f) for f in frames] == value["frame_index"]
    with pytest.raises(Rejected, match="video_truncated"):
        decoded(body[: body.find(b"idx1") * 2 // 3], decoder)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_an_image_is_no_clip(form: str):
    """A host that has lost a clip may send a placeholder."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, form)
    with pytest.raises(Rejected, match="not_a_video"):
        decoded(file.getvalue())


CLIP = encode_clip(numbered_frames(18), 12)
BROKEN = {
    "not_a_video": [b"", b"\0", b"<html>404</html>", bytes(range(256)) * 20, b"ftyp" * 100],
    "video_truncated": [CLIP[:-1], CLIP[: len(CLIP) // 2], CLIP[:60]],
    "video_stream_missing": [encode_clip([], 12)],
    "video_without_frames": [without_frames(CLIP)],
}


@pytest.mark.parametrize(
    ("reason", "body"), [(reason, body) for reason, bodies in BROKEN.items() for body in bodies]
)
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_what_has_no_frames_is_refused_by_name(decoder: str, reason: str, body: bytes):
    with pytest.raises(Rejected) as caught:
        decoded(body, decoder)
    assert caught.value.reason == reason


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_damaged_data_are_refused(decoder: str):
    """Bytes in the middle of the pictures are overwritten; the tables are whole."""
    generator, body = random.Random(0), bytearray(CLIP)
    start, end = CLIP.find(b"mdat") + 800, CLIP.find(b"moov") - 4
    for _ in range(60):
        body[generator.randrange(start, end)] = generator.randrange(256)
    with pytest.raises(Rejected, match="video_corrupt"):
        decoded(bytes(body), decoder)


def test_sizes_are_bounded_before_anything_is_decoded():
    config = ImageConfig(max_pixels=WIDTH * HEIGHT - 1)
    content = VideoContent(FrameConfig(), config)
    with pytest.raises(Rejected, match="image_too_many_pixels: 96x64"):
        content.convert(CLIP)
    content.close()


def test_a_timeline_without_a_keyframe_is_read_from_its_start():
    timeline = Timeline((0, 1, 2), (False, False, False), 3, Fraction(1, 10))
    assert timeline.key_before(2) == 0
    assert choose_frames(timeline, FrameConfig(choice="keyframes"), b"") == [0]


def test_the_real_clips_give_the_same_frames_by_both_decoders(sample_data: Path):
    clips = sorted((sample_data / "videos").glob("*.mp4"))
    assert len(clips) == 5
    for path in clips:
        body = path.read_bytes()
        timeline = open_clip(body).timeline
        found = {name: decoded(body, name, choice="keyframes") for name in DECODERS}
        (value, frames), (_, others) = found["decord"], found["pyav"]
        assert all(timeline.is_key[i] for i in value["frame_index"])
        for one, other in zip(frames, others, strict=True):
            assert np.abs(one.astype(int) - other).mean() < 2
        times = [f["time_s"] for f in value["frames"]]
        assert times == sorted(times) and times[-1] < value["duration_s"]
