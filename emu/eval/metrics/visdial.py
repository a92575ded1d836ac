"""Ranking of candidate answers in visual dialog: NDCG, MRR, recall at 1, 5, 10 and mean rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.eval.metrics.metric import (
    WHOLE,
    Bootstrap,
    Key,
    Score,
    aligned_keys,
    mean_score,
    require,
    shown,
)

Ties = Literal["first", "worst"]
Measure = Literal["ndcg", "mrr", "r@1", "r@5", "r@10", "mean_rank"]
Floats = NDArray[np.float64]
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class VisdialReference:
    """The index of the answer that was given, and the annotators' relevance of every candidate, where known.

    The ranks count the questions with a target, NDCG those with relevance.
    """

    target: int | None
    relevance: Sequence[float] | None = None


@dataclass(frozen=True)
class Visdial:
    """One measure of how high the scores put the right candidates; larger scores rank first.

    Equal scores: "first" ranks the earlier candidate first, "worst" ranks the given answer (and, for NDCG, the
    more relevant candidates) last, so that a model that scores all alike gains nothing. The official code leaves
    the order of equal scores open.
    """

    measure: Measure = "ndcg"
    ties: Ties = "first"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.measure not in ("ndcg", *_MEASURES):
            raise ValueError(f"measure is {self.measure!r}; there are ndcg, {', '.join(_MEASURES)}")
        if self.ties not in ("first", "worst"):
            raise ValueError(f"ties is {self.ties!r}; there are first and worst")

    def __call__(
        self, predictions: Mapping[Key, Sequence[float]], references: Mapping[Key, VisdialReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        used = {key: reference for key, reference in references.items() if self._counts(reference)}
        keys = aligned_keys(
            {key: predictions[key] for key in predictions if key in used or key not in references},
            used,
        )
        scores = score_matrix(predictions, keys)
        if self.measure == "ndcg":
            samples = ndcg(scores, _relevance(used, keys, scores.shape[1]), self.ties)
        else:
            ranks = target_ranks(scores, _targets(used, keys, scores.shape[1]), self.ties)
            samples = _MEASURES[self.measure](ranks)
        return mean_score(
            self.measure, dict(zip(keys, samples.tolist(), strict=True)), self.bootstrap
        )

    def _counts(self, reference: VisdialReference) -> bool:
        """Whether the measure can score the question: relevance is annotated for one round a dialog."""
        known = reference.relevance if self.measure == "ndcg" else reference.target
        return known is not None


def score_matrix(predictions: Mapping[Key, Sequence[float]], keys: Sequence[Key]) -> Floats:
    """The scores [questions, candidates]; raises ValueError for uneven rows and for scores that are not numbers."""
    rows = _rows({key: predictions[key] for key in keys}, "scores")
    num = len(rows[keys[0]])
    uneven = [key for key, row in rows.items() if len(row) != num]
    if uneven:
        raise ValueError(
            f"{len(uneven)} questions have not {num} scores like the first: {shown(uneven)}"
        )
    matrix = np.stack(list(rows.values()))
    bad = [keys[row] for row in np.flatnonzero(np.isnan(matrix).any(1)).tolist()]
    if bad:
        raise ValueError(
            f"{len(bad)} questions have scores that are not numbers (NaN): {shown(bad)}"
        )
    return matrix


def _rows(values: Mapping[Key, object], what: str) -> dict[Key, Floats]:
    found = {key: _row(value) for key, value in values.items()}
    wrong = [key for key, row in found.items() if row is None]
    if wrong:
        raise ValueError(
            f"{len(wrong)} questions have {what} that are no row of numbers: {shown(wrong)}"
        )
    return {key: row for key, row in found.items() if row is not None}


def _row(value: object) -> Floats | None:
    try:
        row = np.asarray(value)
    except ValueError:  # rows of several lengths in a row
        return None
    return row.astype(np.float64) if row.ndim == 1 and row.dtype.kind in "iuf" else None


def target_ranks(scores: Floats, targets: ArrayLike, ties: Ties = "first") -> NDArray[np.int64]:
    """The rank, from 1, of each row's target column; scores [questions, candidates]."""
    columns = np.asarray(targets, np.int64)[:, None]
    found = np.empty(len(scores), np.int64)
    # rows of a block stay in the processor's cache between the two comparisons
    for first in range(0, len(scores), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        found[rows] = _block_ranks(scores[rows], columns[rows], ties)
    return found


def _block_ranks(scores: Floats, columns: NDArray[np.int64], ties: Ties) -> NDArray[np.int64]:
    own = np.take_along_axis(scores, columns, 1)
    as_good = _counts(scores >= own)
    if ties == "worst":
        return as_good
    better = _counts(scores > own)
    tied = np.flatnonzero(as_good > better + 1)
    earlier = np.arange(scores.shape[1]) < columns[tied]
    better[tied] += ((scores[tied] == own[tied]) & earlier).sum(1)
    return better + 1


def ranks(scores: Floats) -> NDArray[np.int64]:
    """The rank, from 1, of every candidate; equal scores in the order of the candidates."""
    order = _best_first(scores)
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.arange(1, scores.shape[1] + 1)[None], 1)
    return result


def ndcg(scores: Floats, relevance: Floats, ties: Ties = "first") -> Floats:
    """The discounted gain of the first k candidates over the best possible one, k the number of relevant ones.

    Raises ValueError for a row without a relevant candidate, whose gain is 0 of 0.
    """
    num_relevant = _counts(relevance != 0)
    if (num_relevant == 0).any():
        rows = np.flatnonzero(num_relevant == 0).tolist()
        raise ValueError(
            f"{len(rows)} questions have no relevant candidate (row {shown(rows)}); NDCG is undefined"
        )
    scores = np.ascontiguousarray(scores)
    discounts = 1 / np.log2(np.arange(scores.shape[1]) + 2.0)
    if ties == "worst":
        order = np.lexsort((relevance, -scores), axis=1)
    else:
        order = _best_first(scores)
    found = np.take_along_axis(relevance, order, 1)
    found *= np.arange(scores.shape[1]) < num_relevant[:, None]
    # the best order puts the others, whose relevance is 0, last
    return found @ discounts / (np.sort(relevance, axis=1)[:, ::-1] @ discounts)


def _counts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are true in each row; several times faster than NumPy's own count."""
    return mask.view(np.uint8).sum(1, dtype=np.uint32).astype(np.int64)


def _best_first(scores: Floats) -> NDArray[np.int64]:
    """The columns of each row by falling score, equal ones in their order."""
    order = np.argsort(-scores, axis=1)
    ordered = np.take_along_axis(scores, order, 1)
    # the default sort is several times faster than the stable one; rows with equal scores are rare
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
    order[tied] = np.argsort(-scores[tied], axis=1, kind="stable")
    return order


_MEASURES = {
    "mrr": lambda found: 1.0 / found,
    "r@1": lambda found: (found <= 1).astype(np.float64),
    "r@5": lambda found: (found <= 5).astype(np.float64),
    "r@10": lambda found: (found <= 10).astype(np.float64),
    "mean_rank": lambda found: found.astype(np.float64),
}


def visdial_scores(
    predictions: Mapping[Key, Sequence[float]],
    references: Mapping[Key, VisdialReference],
    ties: Ties = "first",
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008  (frozen)
) -> list[Score]:
    """Every measure that some question can be scored by: NDCG with relevance, the ranks with a target."""
    aligned_keys(predictions, references)
    bare = [key for key, one in references.items() if one.target is None and one.relevance is None]
    if bare:
        raise ValueError(f"{len(bare)} references have neither target nor relevance: {shown(bare)}")
    measures: list[Measure] = []
    if any(reference.relevance is not None for reference in references.values()):
        measures.append("ndcg")
    if any(reference.target is not None for reference in references.values()):
        measures.extend(("mrr", "r@1", "r@5", "r@10", "mean_rank"))
    return [Visdial(measure, ties, bootstrap)(predictions, references) for measure in measures]


def _targets(
    references: Mapping[Key, VisdialReference], keys: Sequence[Key], num: int
) -> NDArray[np.int64]:
    targets = [references[key].target for key in keys]
    require(dict(zip(keys, targets, strict=True)), WHOLE, "targets")
    outside = [key for key, target in zip(keys, targets, strict=True) if target not in range(num)]
    if outside:
        raise ValueError(
            f"{len(outside)} targets are not among {num} candidates (counted from 0): {shown(outside)}"
        )
    return np.asarray(targets, np.int64)


def _relevance(references: Mapping[Key, VisdialReference], keys: Sequence[Key], num: int) -> Floats:
    rows = _rows({key: references[key].relevance for key in keys}, "relevances")
    uneven = [key for key, row in rows.items() if len(row) != num]
    if uneven:
        raise ValueError(
            f"{len(uneven)} questions have not a relevance for each of {num} candidates: {shown(uneven)}"
        )
    matrix = np.stack(list(rows.values()))
    bad = [
        keys[row] for row in np.flatnonzero(~(np.isfinite(matrix) & (matrix >= 0)).all(1)).tolist()
    ]
    if bad:
        raise ValueError(
            f"{len(bad)} questions have a relevance that is negative or no number: {shown(bad)}"
        )
    none = [keys[row] for row in np.flatnonzero(~matrix.any(1)).tolist()]
    if none:
        raise ValueError(
            f"{len(none)} questions have no relevant candidate, so their NDCG is 0 of 0: {shown(none)}; leave out "
            "their relevance"
        )
    return matrix
