"""Images of scenes: anti-aliased pixels, and files in a mixture of formats as found on the web.

Files are JPEG (some stored rotated, with the EXIF orientation that corrects it), PNG (some with an
alpha channel) and WebP, in several sizes, to exercise decoding and normalisation.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from pipelines.miniworld.scene import BACKGROUNDS, COLOURS, Scene, Thing, pick

SHORTER_SIDES_PX = (160, 192, 224, 256, 320, 384, 428)
"""With the widest aspect ratio of 3:2 the longer side is at most 642 pixels."""

_OVERSAMPLING = 4
_SHADOW = 0.16
_ORIENTATION_TAG = 0x0112  # EXIF 2.3, table 4
_UNDO = {  # EXIF orientation -> the transposition of the stored pixels that a viewer undoes
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class FileForm:
    """How an image is stored: format ("jpg", "png", "webp"), size, quality, EXIF orientation."""

    format: str
    shorter_side_px: int
    quality: int = 92
    orientation: int = 1
    alpha: bool = False


def sample_file_form(rng: np.random.Generator) -> FileForm:
    """A form as found on the web: mostly JPEG, a fifth of those stored rotated."""
    side = pick(rng, SHORTER_SIDES_PX)
    kind, turned = rng.random(2)
    if kind < 0.7:
        orientation = pick(rng, sorted(_UNDO)) if turned < 0.2 else 1
        return FileForm("jpg", side, quality=pick(rng, (85, 90, 95)), orientation=orientation)
    if kind < 0.85:
        return FileForm("png", side, alpha=turned < 0.3)
    return FileForm("webp", side, quality=pick(rng, (85, 90)))


def size_px(scene: Scene, shorter_side_px: int) -> tuple[int, int]:
    """Width and height of the upright image."""
    width, height = scene.extent
    return round(width * shorter_side_px), round(height * shorter_side_px)


def render(scene: Scene, shorter_side_px: int) -> np.ndarray:
    """The upright image, uint8 of shape (height, width, 3), RGB.

    The pixel at a thing's centre has exactly the thing's colour; the background has a slight
    gradient and each thing a soft shadow.
    """
    width, height = size_px(scene, shorter_side_px)
    light = np.linspace(1.015, 0.985, height, dtype=np.float32)[:, None, None]
    ground = np.asarray(BACKGROUNDS[scene.background], np.float32)
    pixels = np.broadcast_to(np.clip(ground * light, 0, 255), (height, width, 3)).copy()
    for thing in scene.things:
        _add_thing(pixels, thing, shorter_side_px)
    return np.rint(pixels).astype(np.uint8)


def encode(scene: Scene, form: FileForm) -> bytes:
    """The image file of a scene; the same scene and form give the same bytes."""
    image = Image.fromarray(render(scene, form.shorter_side_px))
    out = io.BytesIO()
    if form.format == "jpg":
        exif = Image.Exif()
        if form.orientation != 1:
            exif[_ORIENTATION_TAG] = form.orientation
            image = image.transpose(_UNDO[form.orientation])
        image.save(out, "JPEG", quality=form.quality, exif=exif)
    elif form.format == "png":
        image.convert("RGBA" if form.alpha else "RGB").save(out, "PNG", compress_level=6)
    else:
        image.save(out, "WEBP", quality=form.quality, method=1)
    return out.getvalue()


def _add_thing(pixels: np.ndarray, thing: Thing, shorter_side_px: int) -> None:
    """Add one thing with its shadow to float pixels, changing only a box around it."""
    height, width = pixels.shape[:2]
    radius = thing.radius * shorter_side_px
    x, y = thing.x * width, thing.y * height
    pad = radius * 1.35 + 2
    left, top = max(int(x - pad), 0), max(int(y - pad), 0)
    right, bottom = min(int(x + pad) + 1, width), min(int(y + pad) + 1, height)
    box = pixels[top:bottom, left:right]
    mask = shape_mask(thing.shape, thing.turn_deg, radius, x - left, y - top, box.shape[:2])
    drop = radius * 0.08
    shift = np.asarray([[1, 0, drop], [0, 1, drop * 1.5]], np.float32)
    shadow = cv2.warpAffine(mask, shift, (mask.shape[1], mask.shape[0]))
    shadow = cv2.GaussianBlur(shadow, (0, 0), sigmaX=max(radius * 0.07, 0.6))
    box *= 1 - _SHADOW * shadow[:, :, None]
    box += (np.asarray(COLOURS[thing.colour], np.float32) - box) * mask[:, :, None]


def shape_mask(
    shape: str, turn_deg: float, radius: float, x: float, y: float, size: tuple[int, ...]
) -> np.ndarray:
    """The fraction of each pixel that a shape covers: float32 from 0 to 1, `size` is (height, width).

    Radius and centre are in pixels.
    """
    turn = np.deg2rad(turn_deg)
    rotation = np.asarray([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = _outline(shape) @ rotation * radius + (x, y)
    fine = np.zeros((size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [np.rint(points * _OVERSAMPLING).astype(np.int32)], 255)
    mask = cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return mask.astype(np.float32) / 255


@lru_cache(maxsize=16)
def _outline(shape: str) -> np.ndarray:
    """The outline of a shape as points (N, 2) inside the unit circle, y downwards."""
    if shape == "circle":
        return _ring(96, 1.0)
    if shape == "square":
        return _ring(4, 1.0, start_deg=45)
    if shape == "triangle":
        return _ring(3, 1.0)
    if shape == "arrow":
        return _arrow(head=0.76, stem=0.31)
    if shape == "diamond":
        return _ring(4, 1.0) * (0.66, 1.0)
    if shape == "star":
        return np.stack([_ring(5, 1.0), _ring(5, 0.46, start_deg=36)], axis=1).reshape(-1, 2)
    if shape == "heart":
        return _heart()
    if shape == "cross":
        return _cross(arm=0.94, half=0.32)
    raise ValueError(f"shape={shape!r} has no outline: see scene.SHAPES")


def _ring(num_points: int, radius: float, start_deg: float = 0.0) -> np.ndarray:
    angles = np.deg2rad(start_deg + 360 * np.arange(num_points) / num_points)
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x, y - 2.5], axis=1)
    return points / np.linalg.norm(points, axis=1).max()


def _arrow(head: float, stem: float) -> np.ndarray:
    """Points upwards; `head` and `stem` are half widths."""
    foot = float(np.sqrt(1 - stem**2))
    left = [(-stem, foot), (-stem, -0.1), (-head, -0.1)]
    return np.asarray([(0, -1), *((-x, y) for x, y in reversed(left)), *left])


def _cross(arm: float, half: float) -> np.ndarray:
    corner = np.asarray([(half, -arm), (half, -half), (arm, -half)])
    turns = (
        np.asarray([[0, 1], [-1, 0]]),
        np.asarray([[-1, 0], [0, -1]]),
        np.asarray([[0, -1], [1, 0]]),
    )
    return np.concatenate([corner, *(corner @ turn for turn in turns)])
