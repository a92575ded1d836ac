"""What every metric shares: scores and their confidence intervals, alignment of ids, and checks of values.

A metric is a callable: predictions and references by id in; the score, the score of each sample and a confidence
interval out.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.validation import Checked

# Any hashable; not `Hashable`, since mappings are invariant in their keys.
Key = Any
Prediction_contra = TypeVar("Prediction_contra", contravariant=True)
Reference_contra = TypeVar("Reference_contra", contravariant=True)
Value = TypeVar("Value")

# From the samples' summed statistics [resamples, statistics] to scores [resamples].
Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]
# Python's and NumPy's whole numbers.
INTEGER_TYPES = (int, np.integer)
# Errors name at most this many ids.
_MAX_SHOWN = 5
# Sample indices drawn per block of resamples; 16 MB as int32.
_INDICES_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval: its bounds and the fraction of resamples between them."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Score:
    """The value of a metric with its confidence interval and the scores it is made of.

    `samples` are the scores per sample as the official scorer computes them; `value` is not always their mean (corpus
    Bleu, Fréchet distance). `groups` are the scores of subsets, such as question types.
    """

    name: str
    value: float
    samples: Mapping[Key, float] = field(default_factory=dict)
    interval: Interval | None = None
    groups: Mapping[str, float] = field(default_factory=dict)


class Metric(Protocol[Prediction_contra, Reference_contra]):
    """Scores predictions against references with the same ids.

    Raises ValueError if ids differ or a value cannot be scored; the message names the first few.
    """

    def __call__(
        self,
        predictions: Mapping[Key, Prediction_contra],
        references: Mapping[Key, Reference_contra],
    ) -> Score:
        """The score."""
        ...


@dataclass(frozen=True)
class Bootstrap(Checked):
    """Percentile bootstrap: how the confidence interval of a score is computed.

    Attributes:
        num_resamples: resamples of the samples, with replacement; 0 for no interval.
        confidence: fraction of the resampled scores inside the interval.
        seed: of the resampling.
    """

    num_resamples: Annotated[int, Field(ge=0, description="0 leaves out the interval")] = 1000
    confidence: Annotated[float, Field(gt=0, lt=1, description="a fraction such as 0.95")] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0

    def interval(
        self, statistics: NDArray[np.float64], combine: Combine | None = None
    ) -> Interval | None:
        """The interval of `combine(sums over resampled rows)`, by default of the mean of a single column.

        Args:
            statistics: what the score is computed from, [samples] or [samples, statistics].
            combine: sums of statistics [resamples, statistics] to scores [resamples].

        Returns:
            None without resamples or without samples.
        """
        return self.intervals(statistics, [combine])[0]

    def intervals(
        self, statistics: NDArray[np.float64], combines: Sequence[Combine | None]
    ) -> list[Interval | None]:
        """As `interval`, for several scores of the same resamples."""
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
        per_block = max(1, _INDICES_PER_BLOCK // num_rows)
        sums: list[NDArray[np.float64]] = []
        for first in range(0, self.num_resamples, per_block):
            count = min(per_block, self.num_resamples - first)
            indices = generator.integers(num_rows, size=(count, num_rows), dtype=np.int32)
            indices += np.arange(count, dtype=np.int32)[:, None] * num_rows
            weights = np.bincount(indices.ravel(), minlength=count * num_rows).reshape(
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
    """The mean of the samples' scores, times `scale`; raises ValueError if one of them is not finite."""
    values = np.fromiter(samples.values(), np.float64, len(samples))
    broken = [key for key, value in samples.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"{name}: {len(broken)} samples have no finite score: {shown(broken)}")
    interval = bootstrap.interval(values * scale)
    return Score(name, float(values.mean() * scale), samples, interval, dict(groups or {}))


def aligned_keys(predictions: Mapping[Key, object], references: Mapping[Key, object]) -> list[Key]:
    """The ids of the references in their order, checked to equal those of the predictions.

    Raises ValueError with the first few ids that only one side has, or if there are none at all.
    """
    missing = [key for key in references if key not in predictions]
    extra = [key for key in predictions if key not in references]
    if missing or extra:
        hint = ""
        if missing and extra and type(missing[0]) is not type(extra[0]):
            hint = f"; the types of the ids differ: {type(extra[0]).__name__} and {type(missing[0]).__name__}"
        sides = (
            (missing, f"{len(missing)} of {len(references)} references have no prediction"),
            (extra, f"{len(extra)} of {len(predictions)} predictions have no reference"),
        )
        raise ValueError(", ".join(f"{text} ({shown(ids)})" for ids, text in sides if ids) + hint)
    if not references:
        raise ValueError("nothing to score: no references and no predictions")
    return list(references)


def keyed(pairs: Iterable[tuple[Key, Value]], what: str) -> dict[Key, Value]:
    """A mapping from pairs; raises ValueError with the first few ids that appear more than once."""
    found: dict[Key, Value] = {}
    duplicates: list[Key] = []
    for key, value in pairs:
        if key in found:
            duplicates.append(key)
        found[key] = value
    if duplicates:
        raise ValueError(
            f"{what}: {len(duplicates)} ids appear more than once: {shown(duplicates)}"
        )
    return found


def require(values: Mapping[Key, object], kind: type | tuple[type, ...], what: str) -> None:
    """Raises ValueError with the first few values that are not of `kind`; a bool does not pass as an int."""
    wrong = [
        f"{key!r:.80}: {value!r:.80}"
        for key, value in values.items()
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    ]
    if wrong:
        kinds = (kind,) if isinstance(kind, type) else kind
        # NumPy's types need no mention
        names = " or ".join(one.__name__ for one in kinds if one.__module__ == "builtins")
        raise ValueError(
            f"{what}: {len(wrong)} values are not {names}: {', '.join(wrong[:_MAX_SHOWN])}"
        )


def shown(keys: Sequence[Key]) -> str:
    """The first few ids as text, each cut to 80 characters."""
    text = ", ".join(f"{key!r:.80}" for key in keys[:_MAX_SHOWN])
    return (text or "none") + (", ..." if len(keys) > _MAX_SHOWN else "")


def grouped_means(
    values: Iterable[float], groups: Iterable[str], scale: float = 1.0
) -> dict[str, float]:
    """The mean of the values of each group, times `scale`, in order of first appearance."""
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: scale * sum(found) / len(found) for group, found in members.items()}


def optional_module(name: str, extra: str, purpose: str) -> ModuleType:
    """Imports a module of a package that only some metrics need.

    Args:
        name: of the module.
        extra: of this project that installs the package.
        purpose: what needs the package, as the first words of the error.

    Raises ModuleNotFoundError with the extra to install if the package is absent.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # a missing dependency of the package itself is another error
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{purpose} the package {package}; install it with pip install 'emu-platform[{extra}]'",
            name=error.name,
        ) from error
