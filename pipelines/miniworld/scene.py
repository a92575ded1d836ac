"""Scenes: a few coloured shapes on a plain background, sampled with a random generator.

Positions are fractions of the upright image (x to the right, y downwards, both 0 to 1); radii are
fractions of its shorter side. A scene has an aspect ratio (width / height) but no size in pixels.
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
"""Colours of things; every one contrasts with every background."""

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
"""Background colours; none shares its name with a colour of things, so that a question has one answer."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "arrow", "cross")

ASPECTS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
RADII = {"small": (0.085, 0.11), "large": (0.17, 0.22)}
"""Range of the radius of the circle around a thing, by size; the gap keeps the words unambiguous."""

MAX_THINGS = 6
_LARGE_UP_TO = 3  # more large things would not fit without overlap
_MARGIN = 0.02
_CELLS = (0.27, 0.5, 0.73)


@dataclass(frozen=True)
class Thing:
    """One shape: what it is and the position of its centre."""

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
    """The ground truth of an image: background, aspect ratio and things, in the order of their groups."""

    background: str
    aspect: float
    things: tuple[Thing, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The things counted by (shape, colour, size), in order of first appearance."""
        counts: dict[tuple[str, str, str], int] = {}
        for thing in self.things:
            kind = (thing.shape, thing.colour, thing.size)
            counts[kind] = counts.get(kind, 0) + 1
        return tuple(Group(count, *kind) for kind, count in counts.items())

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in units of the shorter side."""
        return extent(self.aspect)


def extent(aspect: float) -> tuple[float, float]:
    """Width and height of an image of this aspect ratio, in units of its shorter side."""
    return max(aspect, 1.0), max(1.0 / aspect, 1.0)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly at random."""
    return options[int(rng.integers(len(options)))]


def sample_scene(
    rng: np.random.Generator, max_things: int = 5, aspects: Sequence[float] = ASPECTS
) -> Scene:
    """A scene of one or two groups and at most `max_things` things that do not overlap; `aspects` to choose from.

    Raises:
        ValueError: `max_things` is not within 1 to 6; more things would not fit.
    """
    if not 1 <= max_things <= MAX_THINGS:
        raise ValueError(
            f"max_things={max_things} is not within 1 to {MAX_THINGS}: more things would not fit"
        )
    background = pick(rng, list(BACKGROUNDS))
    aspect = pick(rng, aspects)
    groups = _sample_groups(rng, max_things)
    positions = _sample_positions(rng, groups, aspect)
    kinds = [group for group in groups for _ in range(group.count)]
    things = tuple(
        Thing(
            g.shape,
            g.colour,
            g.size,
            round(x, 4),
            round(y, 4),
            round(r, 4),
            _sample_turn(rng, g.shape),
        )
        for g, (x, y, r) in zip(kinds, positions, strict=True)
    )
    return Scene(background, aspect, things)


def _sample_groups(rng: np.random.Generator, max_things: int) -> list[Group]:
    num_groups = 1 if max_things == 1 or rng.random() < 0.5 else 2
    counts, room = [], max_things
    for rest in range(num_groups - 1, -1, -1):
        counts.append(1 if rng.random() < 0.55 else int(rng.integers(1, room - rest + 1)))
        room -= counts[-1]
    sizes = ("small", "large") if sum(counts) <= _LARGE_UP_TO else ("small",)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < num_groups:  # two groups never share both shape and colour
        kind = (pick(rng, SHAPES), pick(rng, list(COLOURS)))
        if kind not in kinds:
            kinds.append(kind)
    return [Group(n, *kind, pick(rng, sizes)) for n, kind in zip(counts, kinds, strict=True)]


def _sample_positions(
    rng: np.random.Generator, groups: Sequence[Group], aspect: float
) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each thing: a single thing near a cell of a 3x3 grid, several anywhere."""
    radii = [float(rng.uniform(*RADII[g.size])) for g in groups for _ in range(g.count)]
    if len(radii) == 1:
        jitter = rng.uniform(-0.03, 0.03, size=2)
        return [
            (pick(rng, _CELLS) + float(jitter[0]), pick(rng, _CELLS) + float(jitter[1]), radii[0])
        ]
    width, height = extent(aspect)
    centres = _sample_centres(rng, radii, width, height)
    num_attempts = 1
    while not _do_not_overlap(centres, radii):
        if num_attempts % 20 == 0:  # shrink the things of a crowded scene, so that this ends
            radii = [r * 0.99 for r in radii]
        centres = _sample_centres(rng, radii, width, height)
        num_attempts += 1
    return [(x / width, y / height, r) for (x, y), r in zip(centres, radii, strict=True)]


def _sample_centres(
    rng: np.random.Generator, radii: Sequence[float], width: float, height: float
) -> list[tuple[float, float]]:
    reach = [r + _MARGIN for r in radii]
    return [(float(rng.uniform(r, width - r)), float(rng.uniform(r, height - r))) for r in reach]


def _do_not_overlap(centres: Sequence[tuple[float, float]], radii: Sequence[float]) -> bool:
    pairs = itertools.combinations(zip(centres, radii, strict=True), 2)
    return all(math.dist(a, b) > ra + rb + 2 * _MARGIN for (a, ra), (b, rb) in pairs)


def _sample_turn(rng: np.random.Generator, shape: str) -> float:
    """A small rotation in degrees; a turned diamond would look like a square, so it stays upright."""
    return 0.0 if shape in ("diamond", "circle") else round(float(rng.uniform(-12, 12)), 1)
