"""What a metric is: predictions and references in; a score, the scores of samples and an interval out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# Any hashable; not `Hashable`, since mappings are invariant in their keys.
Key = Any
Prediction_contra = TypeVar("Prediction_contra", contravariant=True)
Reference_contra = TypeVar("Reference_contra", contravariant=True)
Value = TypeVar("Value")

# Sums of the samples' statistics [resamples, statistics] to scores [resamples].
Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]
# Whole numbers, those of arrays included.
WHOLE = (int, np.integer)
_SHOWN = 5
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval: its ends and the share of resamples between them."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Score:
    """One number, where it comes from, and how sure it is.

    `samples` are the official scorer's scores of single samples; `value` is not always their mean (corpus
    Bleu, Fréchet distance). `groups` are the scores of parts: question types, orders of n-grams.
    """

    name: str
    value: float
    samples: Mapping[Key, float] = field(default_factory=dict)
    interval: Interval | None = None
    groups: Mapping[str, float] = field(default_factory=dict)


class Metric(Protocol[Prediction_contra, Reference_contra]):
    """Scores predictions against references with the same ids.

    Raises ValueError where ids differ or a value cannot be scored; the message names the first few.
    """

    def __call__(
        self,
        predictions: Mapping[Key, Prediction_contra],
        references: Mapping[Key, Reference_contra],
    ) -> Score:
        """The score."""
        ...


@dataclass(frozen=True)
class Bootstrap:
    """How the interval is found: percentiles of resampled scores; no interval where `num_resamples` is 0."""

    num_resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 0 or self.seed < 0:
            raise ValueError(
                f"num_resamples is {self.num_resamples} and seed {self.seed}; neither can be below 0 (0 resamples "
                "leave out the interval)"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence is {self.confidence}; it is a share between 0 and 1, such as 0.95"
            )

    def interval(
        self, statistics: NDArray[np.float64], combine: Combine | None = None
    ) -> Interval | None:
        """The interval of `combine(sums over resampled rows)`; of the mean of the one column by default.

        Args:
            statistics: what the score is made of, [samples] or [samples, statistics].
            combine: sums of statistics [resamples, statistics] to scores [resamples].
        """
        return self.intervals(statistics, [combine])[0]

    def intervals(
        self, statistics: NDArray[np.float64], combines: Sequence[Combine | None]
    ) -> list[Interval | None]:
        """The interval of each combination, from the same resamples; None as in `interval`."""
        rows = np.atleast_2d(np.asarray(statistics, np.float64).T).T
        if self.num_resamples == 0 or len(rows) == 0:
            return [None] * len(combines)
        sums = self._sums(rows)
        tail = (1 - self.confidence) / 2
        found: list[Interval | None] = []
        for combine in combines:
            scores = sums[:, 0] / len(rows) if combine is None else combine(sums)
            low, high = np.quantile(scores, [tail, 1 - tail])
            found.append(Interval(float(low), float(high), self.confidence))
        return found

    def _sums(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        generator = np.random.default_rng(self.seed)
        num_rows = len(rows)
        at_once = max(1, _DRAWS_AT_ONCE // num_rows)
        sums: list[NDArray[np.float64]] = []
        for first in range(0, self.num_resamples, at_once):
            count = min(at_once, self.num_resamples - first)
            draws = generator.integers(num_rows, size=(count, num_rows), dtype=np.int32)
            draws += np.arange(count, dtype=np.int32)[:, None] * num_rows
            weights = np.bincount(draws.ravel(), minlength=count * num_rows).reshape(
                count, num_rows
            )
            sums.append(weights @ rows)
        return np.concatenate(sums)


def mean_score(
    name: str,
    samples: Mapping[Key, float],
    bootstrap: Bootstrap,
    groups: Mapping[str, float] | None = None,
    scale: float = 1.0,
) -> Score:
    """The mean of the samples' scores as a score; raises ValueError where one of them is not finite."""
    values = np.fromiter(samples.values(), np.float64, len(samples))
    broken = [key for key, value in samples.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"{name}: {len(broken)} samples have no finite score: {shown(broken)}")
    interval = bootstrap.interval(values * scale)
    return Score(name, float(values.mean() * scale), samples, interval, dict(groups or {}))


def aligned_keys(predictions: Mapping[Key, object], references: Mapping[Key, object]) -> list[Key]:
    """The ids of the references in their order, after a check that the predictions have the same.

    Raises ValueError with the first few ids that only one side has, or where there are none.
    """
    missing = [key for key in references if key not in predictions]
    extra = [key for key in predictions if key not in references]
    if missing or extra:
        hint = ""
        if missing and extra and type(missing[0]) is not type(extra[0]):
            hint = f"; the ids' types differ: {type(extra[0]).__name__} and {type(missing[0]).__name__}"
        sides = (
            (missing, f"{len(missing)} of {len(references)} references have no prediction"),
            (extra, f"{len(extra)} of {len(predictions)} predictions have no reference"),
        )
        raise ValueError(", ".join(f"{says} ({shown(ids)})" for ids, says in sides if ids) + hint)
    if not references:
        raise ValueError("nothing to score: no references and no predictions")
    return list(references)


def keyed(pairs: Iterable[tuple[Key, Value]], what: str) -> dict[Key, Value]:
    """A mapping from pairs; raises ValueError with the first few ids that appear twice."""
    found: dict[Key, Value] = {}
    doubled: list[Key] = []
    for key, value in pairs:
        if key in found:
            doubled.append(key)
        found[key] = value
    if doubled:
        raise ValueError(f"{what}: {len(doubled)} ids appear more than once: {shown(doubled)}")
    return found


def require(values: Mapping[Key, object], kind: type | tuple[type, ...], what: str) -> None:
    """Raises ValueError naming the first few values that are not of `kind` (a bool is no number)."""
    wrong = [
        f"{key!r:.80}: {value!r:.80}"
        for key, value in values.items()
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    ]
    if wrong:
        kinds = (kind,) if isinstance(kind, type) else kind
        # NumPy's kinds go without saying
        names = " or ".join(one.__name__ for one in kinds if one.__module__ == "builtins")
        raise ValueError(
            f"{what}: {len(wrong)} values are not {names}: {', '.join(wrong[:_SHOWN])}"
        )


def shown(keys: Sequence[Key]) -> str:
    """The first few ids as text, each cut at 80 signs."""
    text = ", ".join(f"{key!r:.80}" for key in keys[:_SHOWN])
    return (text or "none") + (", ..." if len(keys) > _SHOWN else "")


def grouped_means(
    values: Iterable[float], groups: Iterable[str], scale: float = 1.0
) -> dict[str, float]:
    """The mean of the values of each group, in the order the groups appear."""
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: scale * sum(found) / len(found) for group, found in members.items()}
