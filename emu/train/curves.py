"""Charts of metrics over the steps of one or several runs, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 46, 36
"""Pixels around a chart. Letters of 19 in 720 are legible at a width of 420."""
MAX_POINTS = 600
"""Points of a curve; of more, means of neighbours are shown."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """The values of one run, by step."""

    points: Points
    colour: str


def points_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Step and value of a field of metrics, where it is finite."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [(step, value) for step, value in found if math.isfinite(value)]


def stacked(charts: Sequence[str]) -> str:
    """Charts below each other, as one SVG file."""
    placed = "".join(
        f'<g transform="translate(0 {HEIGHT * number})">{inner}</g>'
        for number, inner in enumerate(charts)
    )
    return svg(placed, HEIGHT * len(charts))


def svg(inner: str, height: int = HEIGHT) -> str:
    """An SVG image that fits a narrow window."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        'style="max-width: 100%; height: auto" font-family="sans-serif" font-size="19">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{inner}</svg>\n'
    )


def chart(title: str, curves: Sequence[Curve]) -> str:
    """Curves with their grid and axes; the last value of a single one stands beside the title.

    The axis is logarithmic where the values span more than a factor of ten.
    """
    curves = [Curve(_thinned(c.points), c.colour) for c in curves if c.points]
    if not curves:
        return ""
    steps = [step for c in curves for step, _ in c.points]
    values = [value for c in curves for _, value in c.points]
    is_log = min(values) > 0 and max(values) / min(values) > 10
    x = _Axis(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT)
    y = _Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, is_log)
    last = f": {_shown(curves[0].points[-1][1])}" if len(curves) == 1 else ""
    scale = ", log scale" if is_log else ""
    lines = ""
    for curve in curves:
        line = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in curve.points)
        lines += (
            f'<polyline points="{line}" fill="none" stroke="{curve.colour}" stroke-width="2.5"/>'
        )
    return (
        f'<text x="{LEFT}" y="{y.end - 14:.0f}" font-weight="bold">{title}{last}'
        f'<tspan font-weight="normal" fill="#666">{scale}</tspan></text>'
        + "".join(
            f'<path d="M{LEFT},{y.at(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y.at(tick) + 6:.1f}" text-anchor="end" fill="#555">{_shown(tick)}</text>'
            for tick in y.ticks(4)
        )
        + "".join(
            f'<path d="M{x.at(tick):.1f},{y.end:.1f}V{y.start:.1f}" stroke="#eee"/>'
            f'<text x="{x.at(tick):.1f}" y="{y.start + 21:.0f}" text-anchor="middle" fill="#555">'
            f"{_shown(tick)}</text>"
            for tick in x.ticks(5)
            if tick == round(tick)
        )
        + f'<text x="{WIDTH - RIGHT}" y="{y.end - 14:.0f}" text-anchor="end" fill="#555">steps</text>'
        + lines
    )


def _shown(value: float) -> str:
    """A number in three digits, of thousands with k and of millions with M, short enough for an axis."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * factor or (unit == "M" and abs(value) >= factor):
            return f"{value / factor:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _thinned(points: Points) -> Points:
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


@dataclass(frozen=True)
class _Axis:
    """The values from `low` to `high` along the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1)

    def ticks(self, number: int) -> list[float]:
        """About `number` round values between the limits."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [v for v in every if self.low <= v <= self.high]
            return inside[:: max(1, len(inside) // number)]
        rough = (self.high - self.low) / number or abs(self.high) or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.7 * rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value
