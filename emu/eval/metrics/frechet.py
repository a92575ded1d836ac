"""Fréchet distance (FID) and kernel distance (KID) of two sets of features, computed in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.eval.metrics.files import ScoreFiles
from emu.eval.metrics.metric import Score

Floats = NDArray[np.float64]
_KERNEL_DEGREE = 3


@dataclass(frozen=True)
class FrechetFiles(ScoreFiles):
    """Features as .npy files of shape [samples, width]; see `image_features` for those that FID is defined on."""

    predictions_example: ClassVar[str] = "features.npy"
    references_example: ClassVar[str] = "features.npy"

    def scores(self, metric: str) -> list[Score]:
        """One score without samples or interval."""
        del metric
        first, second = (
            FeatureStatistics.of(_features(path)) for path in (self.predictions, self.references)
        )
        return [Score("Frechet distance", frechet_distance(first, second))]


@dataclass(frozen=True)
class KidFiles(ScoreFiles):
    """Features as .npy files of shape [samples, width]."""

    subset_size: int = 1000
    """Samples of each side in one of the 100 subsets that the distance is averaged over."""

    predictions_example: ClassVar[str] = "features.npy"
    references_example: ClassVar[str] = "features.npy"

    def scores(self, metric: str) -> list[Score]:
        """One score without samples or interval."""
        del metric
        first, second = (_features(path) for path in (self.predictions, self.references))
        found = kernel_distance(first, second, subset_size=self.subset_size, seed=self.seed)
        return [Score("KID", found.mean, groups={"deviation of subsets": found.deviation})]


def _features(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix != ".npy":
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; features are a .npy file [samples, width]"
        )
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} does not contain an array of numbers: {error}") from error


@dataclass(frozen=True)
class FeatureStatistics:
    """Number, mean [D] and scatter matrix [D, D] (sum of outer products of deviations) of features.

    The statistics of two workers merge to those of all features (Chan et al., 1979) without a second pass and without
    the cancellation of sums of squares.
    """

    count: int
    mean: Floats
    scatter: Floats

    @classmethod
    def empty(cls, width: int) -> FeatureStatistics:
        """Statistics of no features."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: ArrayLike) -> FeatureStatistics:
        """Statistics of a batch of features [N, D]; raises ValueError for values that are not finite."""
        matrix = _checked(features)
        if not len(matrix):
            return cls.empty(matrix.shape[1])
        mean = matrix.mean(0)
        centred = matrix - mean
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # `_factor` checks for values that are not finite
            return cls(len(matrix), mean, centred.T @ centred)

    def merged(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets of features together."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"cannot merge features of widths {len(self.mean)} and {len(other.mean)}"
            )
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)

    def updated(self, features: ArrayLike) -> FeatureStatistics:
        """The statistics after one more batch [N, D]."""
        return self.merged(FeatureStatistics.of(features))

    @property
    def covariance(self) -> Floats:
        """The unbiased covariance [D, D]; raises ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples; there are {self.count}")
        return self.scatter / (self.count - 1)


def _checked(features: ArrayLike) -> Floats:
    """Features [N, D] in float64; raises ValueError for anything else."""
    found = np.asarray(features)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"features are {found.dtype}; they must be real numbers")
    if found.ndim != 2 or found.shape[1] == 0:
        raise ValueError(f"features have shape {found.shape}; they must be [samples, width]")
    matrix = found.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(matrix).all(1))
    if len(bad):
        raise ValueError(
            f"features of {len(bad)} samples are not finite; the first are {bad[:5].tolist()}"
        )
    return matrix


def statistics_of_batches(batches: Iterable[ArrayLike], width: int) -> FeatureStatistics:
    """The statistics of a stream of batches [N, D]."""
    statistics = FeatureStatistics.empty(width)
    for batch in batches:
        statistics = statistics.updated(batch)
    return statistics


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Wasserstein-2 distance of normal distributions with these statistics (Heusel et al., 2017)."""
    return gaussian_distance(first.mean, first.covariance, second.mean, second.covariance)


def gaussian_distance(
    mean_1: ArrayLike, covariance_1: ArrayLike, mean_2: ArrayLike, covariance_2: ArrayLike
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two normal distributions.

    The trace of the root is the sum of the singular values of F1^T F2 with Ci = Fi Fi^T. It is real and accurate even
    if the product of the covariances is nearly singular, where a general matrix root is neither. Rounding errors below
    0 are clipped.
    """
    means = np.asarray(mean_1, np.float64), np.asarray(mean_2, np.float64)
    factors = _factor(covariance_1), _factor(covariance_2)
    shapes = [mean.shape for mean in means] + [factor.shape[:1] for factor in factors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"widths differ: means of {shapes[0]} and {shapes[1]}, covariances of {shapes[2]} and {shapes[3]}"
        )
    if not np.isfinite(means).all():
        raise ValueError("a mean is not finite")
    root_trace = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    traces = sum(float((factor**2).sum()) for factor in factors)
    distance = float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * float(root_trace)
    return max(distance, 0.0)


def _factor(covariance: ArrayLike) -> Floats:
    """F such that F F^T is the covariance; eigenvalues that rounding makes negative are set to 0."""
    matrix = np.asarray(covariance, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ValueError(
            f"a covariance must be square and finite; this one has shape {matrix.shape} and "
            f"{int((~np.isfinite(matrix)).sum())} values that are not finite"
        )
    scale = np.abs(matrix).max(initial=0)
    if np.abs(matrix - matrix.T).max(initial=0) > 1e-6 * scale:
        raise ValueError("a covariance must be symmetric")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values.min(initial=0) < -1e-6 * scale * len(matrix):
        raise ValueError(
            f"a covariance must not have negative eigenvalues; the smallest is {values.min()}"
        )
    return vectors * np.sqrt(np.maximum(values, 0))


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation of the squared kernel distance over subsets."""

    mean: float
    deviation: float


def kernel_distance(
    first: ArrayLike,
    second: ArrayLike,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """KID: the unbiased squared maximum mean discrepancy with kernel (x·y / D + 1)^3 (Bińkowski et al., 2018).

    Raises ValueError for a set with fewer samples than a subset, and for values that are not finite.
    """
    sets = _checked(first), _checked(second)
    if sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"widths differ: {sets[0].shape[1]} and {sets[1].shape[1]}")
    smallest = min(len(one) for one in sets)
    if not 2 <= subset_size <= smallest:
        raise ValueError(
            f"subset_size is {subset_size}; the sets have {len(sets[0])} and {len(sets[1])} samples; give at "
            "least 2 and at most the size of the smaller set"
        )
    if num_subsets < 1:
        raise ValueError(f"num_subsets is {num_subsets}; give at least 1")
    generator = np.random.default_rng(seed)
    with np.errstate(over="ignore", invalid="ignore"):
        found = [
            squared_discrepancy(
                *(one[generator.choice(len(one), subset_size, replace=False)] for one in sets)
            )
            for _ in range(num_subsets)
        ]
    if not np.isfinite(found).all():
        raise ValueError("the features are too large: their kernel exceeds 1e308")
    return KernelDistance(float(np.mean(found)), float(np.std(found)))


def squared_discrepancy(first: Floats, second: Floats) -> float:
    """Unbiased estimate from all samples [N, D] and [M, D]; it may be negative."""
    within_1, within_2 = _kernel(first, first), _kernel(second, second)
    n, m = len(first), len(second)
    pairs_1 = (within_1.sum() - np.trace(within_1)) / (n * (n - 1))
    pairs_2 = (within_2.sum() - np.trace(within_2)) / (m * (m - 1))
    return float(pairs_1 + pairs_2 - 2 * _kernel(first, second).mean())


def _kernel(first: Floats, second: Floats) -> Floats:
    return (first @ second.T / first.shape[1] + 1) ** _KERNEL_DEGREE
