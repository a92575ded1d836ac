"""Reads a scene back from the pixels of an image: a rule-based reader for images that a model generated.

It knows what `render` draws: one thing of a known colour on a plain, pale background. Colours are the nearest of the
known ones; the thing is what differs from the background; its place is that of its centre, its size follows from its
extent. The shape is the one whose rendered mask overlaps the thing best. On rendered scenes it is right (tested), so
what it finds in a generated image can be compared with the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.miniworld.language import grid_position
from pipelines.miniworld.render import shape_mask
from pipelines.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, Thing

SIDE = 64  # images are read at this size
_MIN_DISTANCE = 45.0  # RGB distance from the background above which a pixel belongs to the thing
_MIN_PIXELS = 12
_TURNS_DEG = (-10, 0, 10)
_LARGE_FROM = 0.135  # radius as a fraction of the side; small ends at 0.11, large starts at 0.17


@dataclass(frozen=True)
class Reading:
    """What an image shows; the attributes of the thing are None where there is none."""

    background: str
    colour: str | None = None
    size: str | None = None
    shape: str | None = None
    place: str | None = None
    """As in captions: "top left", "middle"."""


def read_image(pixels_HWC: np.ndarray) -> Reading:
    """Reads a square RGB image in uint8."""
    image = cv2.resize(pixels_HWC, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    sides = np.concatenate([image[:, :3].reshape(-1, 3), image[:, -3:].reshape(-1, 3)])
    ground = np.median(np.concatenate([border, sides]), axis=0)
    background = _nearest(ground, BACKGROUNDS)
    mask = _largest_part(np.linalg.norm(image - ground, axis=2) > _MIN_DISTANCE)
    if mask.sum() < _MIN_PIXELS:
        return Reading(background)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    colour = _nearest(np.median(image[inner if inner.any() else mask], axis=0), COLOURS)
    x, y, radius, shape = _best_shape(mask)
    thing = Thing(shape, colour, "", x, y, radius, 0.0)
    size = "large" if radius >= _LARGE_FROM else "small"
    return Reading(background, colour, size, shape, grid_position(thing))


def _nearest(rgb: np.ndarray, known: dict[str, tuple[int, int, int]]) -> str:
    return min(known, key=lambda name: float(np.linalg.norm(rgb - np.asarray(known[name]))))


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask: single pixels of noise are left out."""
    num_parts, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if num_parts < 2:
        return np.zeros_like(mask)
    return labels == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))


def _best_shape(mask: np.ndarray) -> tuple[float, float, float, str]:
    """Centre (fractions of the side), radius and name of the shape whose mask overlaps best."""
    rows, columns = np.nonzero(mask)
    centre = np.asarray([columns.mean() + 0.5, rows.mean() + 0.5])
    area = float(mask.sum())
    best = (-1.0, 0.5, 0.5, 0.1, SHAPES[0])
    for shape in SHAPES:
        for turn_deg in _TURNS_DEG:
            overlap, x, y, radius = _fit(mask, shape, turn_deg, centre, area)
            if overlap > best[0]:
                best = (overlap, x / SIDE, y / SIDE, radius / SIDE, shape)
    return best[1:]


def _fit(
    mask: np.ndarray, shape: str, turn_deg: float, centre: np.ndarray, area: float
) -> tuple[float, float, float, float]:
    """Overlap (intersection over union) of a shape of equal area and centroid, its centre and radius in pixels."""
    reference = shape_mask(shape, turn_deg, radius=20.0, x=32.0, y=32.0, size=(SIDE, SIDE))
    weights = reference.sum()
    radius = 20.0 * float(np.sqrt(area / weights))
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    shift = np.asarray(
        [(reference * (columns + 0.5)).sum() / weights, (reference * (rows + 0.5)).sum() / weights]
    )
    x, y = centre - (shift - 32.0) * radius / 20.0
    fitted = shape_mask(shape, turn_deg, radius, float(x), float(y), (SIDE, SIDE)) > 0.5
    union = np.logical_or(fitted, mask).sum()
    return float(np.logical_and(fitted, mask).sum() / max(union, 1)), float(x), float(y), radius
