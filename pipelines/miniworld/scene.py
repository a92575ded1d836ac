"""Scenes: a few coloured shapes on a soft background, drawn from a random generator.

Positions are fractions of the upright picture (x to the right, y downwards, both 0 to 1); radii are
fractions of its shorter side. A scene knows its aspect (width / height) but not its pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Rgb = tuple[int, int, int]
T = TypeVar("T")

COLOURS: dict[str, Rgb] = {
    "red": (214, 62, 66),
    "orange": (238, 132, 44),
    "yellow": (242, 192, 36),
    "green": (62, 158, 96),
    "blue": (56, 108, 196),
    "purple": (132, 82, 176),
    "pink": (236, 112, 164),
    "brown": (134, 90, 62),
    "black": (50, 52, 62),
}
"""Colours of things; all of them stand out from every background."""

BACKGROUNDS: dict[str, Rgb] = {
    "cream": (251, 245, 228),
    "mint": (216, 240, 226),
    "sky": (214, 232, 249),
    "lilac": (231, 224, 246),
    "peach": (253, 228, 213),
    "sand": (236, 225, 202),
    "rose": (251, 224, 231),
    "silver": (226, 229, 234),
}
"""Background colours; their words are never colours of things, so that a question has one answer."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "arrow", "cross")

ASPECTS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
RADII = {"small": (0.085, 0.11), "large": (0.17, 0.22)}
"""Radius of the circle that a thing fits into, by size word; the gap keeps the words unambiguous."""

MAX_THINGS = 6
_LARGE_UP_TO = 3  # more large things than this leave no room to place them apart
_MARGIN = 0.02
_CELLS = (0.27, 0.5, 0.73)


@dataclass(frozen=True)
class Thing:
    """One shape: what it is and where its centre lies."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn_deg: float


@dataclass(frozen=True)
class Group:
    """Things of a scene that share shape, colour and size: "three small red circles"."""

    count: int
    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """A picture's whole truth: background, aspect and things, in the order of their groups."""

    background: str
    aspect: float
    things: tuple[Thing, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The things counted by (shape, colour, size), in order of first appearance."""
        counts: dict[tuple[str, str, str], int] = {}
        for thing in self.things:
            look = (thing.shape, thing.colour, thing.size)
            counts[look] = counts.get(look, 0) + 1
        return tuple(Group(count, *look) for look, count in counts.items())

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in units of the shorter side."""
        return extent(self.aspect)


def extent(aspect: float) -> tuple[float, float]:
    """Width and height of a picture of this aspect, in units of its shorter side."""
    return max(aspect, 1.0), max(1.0 / aspect, 1.0)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def draw_scene(rng: np.random.Generator, max_things: int = 5) -> Scene:
    """A scene of one group or two, at most `max_things` things, none overlapping another.

    Raises:
        ValueError: `max_things` is not within 1 to 6; more would not fit.
    """
    if not 1 <= max_things <= MAX_THINGS:
        raise ValueError(
            f"max_things={max_things} is not within 1 to {MAX_THINGS}: more things find no room"
        )
    background = pick(rng, list(BACKGROUNDS))
    aspect = pick(rng, ASPECTS)
    groups = _draw_groups(rng, max_things)
    places = _draw_places(rng, groups, aspect)
    looks = [group for group in groups for _ in range(group.count)]
    things = tuple(
        Thing(g.shape, g.colour, g.size, round(x, 4), round(y, 4), round(r, 4), _turn(rng, g.shape))
        for g, (x, y, r) in zip(looks, places, strict=True)
    )
    return Scene(background, aspect, things)


def _draw_groups(rng: np.random.Generator, max_things: int) -> list[Group]:
    num_groups = 1 if max_things == 1 or rng.random() < 0.5 else 2
    counts, room = [], max_things
    for rest in range(num_groups - 1, -1, -1):
        counts.append(1 if rng.random() < 0.55 else int(rng.integers(1, room - rest + 1)))
        room -= counts[-1]
    sizes = ("small", "large") if sum(counts) <= _LARGE_UP_TO else ("small",)
    looks: list[tuple[str, str]] = []
    while len(looks) < num_groups:  # two groups never share both shape and colour
        look = (pick(rng, SHAPES), pick(rng, list(COLOURS)))
        if look not in looks:
            looks.append(look)
    return [Group(n, *look, pick(rng, sizes)) for n, look in zip(counts, looks, strict=True)]


def _draw_places(
    rng: np.random.Generator, groups: Sequence[Group], aspect: float
) -> list[tuple[float, float, float]]:
    """(x, y, radius) of every thing: a lone thing near a cell of a 3x3 grid, others freely."""
    radii = [float(rng.uniform(*RADII[g.size])) for g in groups for _ in range(g.count)]
    if len(radii) == 1:
        jitter = rng.uniform(-0.03, 0.03, size=2)
        return [
            (pick(rng, _CELLS) + float(jitter[0]), pick(rng, _CELLS) + float(jitter[1]), radii[0])
        ]
    width, height = extent(aspect)
    centres = _throw(rng, radii, width, height)
    num_throws = 1
    while not _apart(centres, radii):
        if num_throws % 20 == 0:  # a crowded scene shrinks a little, so that this ends
            radii = [r * 0.99 for r in radii]
        centres = _throw(rng, radii, width, height)
        num_throws += 1
    return [(x / width, y / height, r) for (x, y), r in zip(centres, radii, strict=True)]


def _throw(
    rng: np.random.Generator, radii: Sequence[float], width: float, height: float
) -> list[tuple[float, float]]:
    reach = [r + _MARGIN for r in radii]
    return [(float(rng.uniform(r, width - r)), float(rng.uniform(r, height - r))) for r in reach]


def _apart(centres: Sequence[tuple[float, float]], radii: Sequence[float]) -> bool:
    pairs = itertools.combinations(zip(centres, radii, strict=True), 2)
    return all(math.dist(a, b) > ra + rb + 2 * _MARGIN for (a, ra), (b, rb) in pairs)


def _turn(rng: np.random.Generator, shape: str) -> float:
    """A slight turn; a diamond stays upright, or it would pass for a square."""
    return 0.0 if shape in ("diamond", "circle") else round(float(rng.uniform(-12, 12)), 1)
