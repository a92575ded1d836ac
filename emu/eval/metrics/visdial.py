"""Ranks of candidate answers in visual dialog: NDCG, MRR, recall at 1, 5 and 10, and mean rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.eval.metrics.files import (
    Record,
    ScoreFiles,
    integer,
    numbers,
    record_id,
    value_of,
    values_by_id,
)
from emu.eval.metrics.metric import (
    INTEGER_TYPES,
    Bootstrap,
    Key,
    Score,
    aligned_keys,
    mean_score,
    require,
    shown,
)
from schemas.validation import Checked

Ties = Literal["first", "worst"]
Measure = Literal["ndcg", "mrr", "r@1", "r@5", "r@10", "mean_rank"]
Floats = NDArray[np.float64]
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class VisdialFiles(ScoreFiles):
    """Scores or ranks (1 is best) of candidates; references have "gt_index", from 0, or "gt_relevance", or both."""

    predictions_example: ClassVar[str] = (
        '[{"image_id": 7, "round_id": 1, "scores": [0.1, 0.9]}, {"image_id": 7, "round_id": 2, "ranks": [2, 1]}]'
    )
    references_example: ClassVar[str] = (
        '[{"image_id": 7, "round_id": 1, "gt_index": 1, "gt_relevance": [0, 1]}, '
        '{"image_id": 7, "round_id": 2, "gt_index": 1}]'
    )

    def scores(self, metric: str) -> list[Score]:
        """A score per measure that the references allow."""
        del metric
        predictions = visdial_predictions(self.predictions)
        references = visdial_references(self.references)
        return visdial_scores(predictions, references, bootstrap=self.bootstrap)


@dataclass(frozen=True)
class VisdialReference:
    """The index of the correct answer, and the annotated relevance of every candidate, if known.

    Ranks are computed for questions with a target, NDCG for questions with relevance.
    """

    target: int | None
    relevance: Sequence[float] | None = None


@dataclass(frozen=True)
class Visdial(Checked):
    """One measure of how high the scores rank the correct candidates; the largest score ranks first.

    Ties: "first" ranks the earlier candidate first; "worst" ranks the correct answer (for NDCG, the more relevant
    candidates) last, so that a model with constant scores gains nothing. The official code leaves the order of equal
    scores undefined.
    """

    measure: Measure = "ndcg"
    ties: Ties = "first"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, Sequence[float]], references: Mapping[Key, VisdialReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        used = {
            key: reference for key, reference in references.items() if self._can_score(reference)
        }
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

    def _can_score(self, reference: VisdialReference) -> bool:
        """Whether the measure can score the question; relevance is annotated for one round per dialog."""
        known = reference.relevance if self.measure == "ndcg" else reference.target
        return known is not None


def visdial_predictions(path: Path) -> dict[str, list[float]]:
    """The scores of the candidates of each question; ranks (1 is best) become their negatives.

    Raises ValueError for ranks that are not a permutation of 1 to the number of candidates.
    """
    return values_by_id(path, lambda record: _candidate_scores(record, path))


def _candidate_scores(record: Record, path: Path) -> list[float]:
    name = "scores" if "scores" in record else "ranks"
    where = f"{path}: record {record_id(record, path)!r}: {name}"
    values = numbers(value_of(record, path, "scores", "ranks"), where)
    if name == "scores":
        return values
    if sorted(values) != list(range(1, len(values) + 1)):
        raise ValueError(
            f"{where} are not 1 to {len(values)}, each once: {values!r:.80}; give scores if candidates tie"
        )
    return [-value for value in values]


def visdial_references(path: Path) -> dict[str, VisdialReference]:
    """The index of the correct answer, from 0, and the relevance of the candidates, if a record has it.

    The challenge's file of dense annotations has relevance only.
    """

    def reference(record: Record) -> VisdialReference:
        where = f"{path}: record {record_id(record, path)!r}:"
        relevance: Any = record.get("gt_relevance", record.get("relevance"))
        # an empty cell of a CSV file means no relevance
        relevance = None if relevance == "" else relevance
        target = None
        if relevance is None or "gt_index" in record or "target" in record:
            target = integer(value_of(record, path, "gt_index", "target"), f"{where} gt_index")
        if relevance is not None:
            relevance = numbers(relevance, f"{where} gt_relevance")
        return VisdialReference(target, relevance)

    return values_by_id(path, reference)


def score_matrix(predictions: Mapping[Key, Sequence[float]], keys: Sequence[Key]) -> Floats:
    """The scores as [questions, candidates]; raises ValueError for rows of different lengths and for NaN."""
    rows = _rows({key: predictions[key] for key in keys}, "scores")
    num = len(rows[keys[0]])
    uneven = [key for key, row in rows.items() if len(row) != num]
    if uneven:
        raise ValueError(
            f"{len(uneven)} questions do not have {num} scores like the first: {shown(uneven)}"
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
            f"{len(wrong)} questions have {what} that are not a list of numbers: {shown(wrong)}"
        )
    return {key: row for key, row in found.items() if row is not None}


def _row(value: object) -> Floats | None:
    try:
        row = np.asarray(value)
    except ValueError:  # nested lists of different lengths
        return None
    return row.astype(np.float64) if row.ndim == 1 and row.dtype.kind in "iuf" else None


def target_ranks(scores: Floats, targets: ArrayLike, ties: Ties = "first") -> NDArray[np.int64]:
    """The rank, from 1, of the target column of each row of scores [questions, candidates]."""
    columns = np.asarray(targets, np.int64)[:, None]
    found = np.empty(len(scores), np.int64)
    # a block of rows stays in the CPU cache between the two comparisons
    for first in range(0, len(scores), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        found[rows] = _block_ranks(scores[rows], columns[rows], ties)
    return found


def _block_ranks(scores: Floats, columns: NDArray[np.int64], ties: Ties) -> NDArray[np.int64]:
    own = np.take_along_axis(scores, columns, 1)
    as_good = _row_counts(scores >= own)
    if ties == "worst":
        return as_good
    better = _row_counts(scores > own)
    tied = np.flatnonzero(as_good > better + 1)
    earlier = np.arange(scores.shape[1]) < columns[tied]
    better[tied] += ((scores[tied] == own[tied]) & earlier).sum(1)
    return better + 1


def ranks(scores: Floats) -> NDArray[np.int64]:
    """The rank, from 1, of every candidate [questions, candidates]; ties in the order of the candidates."""
    order = _best_first(scores)
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.arange(1, scores.shape[1] + 1)[None], 1)
    return result


def ndcg(scores: Floats, relevance: Floats, ties: Ties = "first") -> Floats:
    """Normalized discounted cumulative gain of the first k candidates, [questions]; k is the number of relevant ones.

    Raises ValueError for a row without a relevant candidate, whose gain would be 0 / 0.
    """
    num_relevant = _row_counts(relevance != 0)
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
    # in the best order the others, with relevance 0, are last
    return found @ discounts / (np.sort(relevance, axis=1)[:, ::-1] @ discounts)


def _row_counts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of true values in each row; several times faster than NumPy's count_nonzero."""
    return mask.view(np.uint8).sum(1, dtype=np.uint32).astype(np.int64)


def _best_first(scores: Floats) -> NDArray[np.int64]:
    """The columns of each row by decreasing score, ties in their order."""
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
    """All measures that the references allow: NDCG needs relevance, the others a target."""
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
    require(dict(zip(keys, targets, strict=True)), INTEGER_TYPES, "targets")
    outside = [key for key, target in zip(keys, targets, strict=True) if target not in range(num)]
    if outside:
        raise ValueError(
            f"{len(outside)} targets are not indices of {num} candidates (from 0): {shown(outside)}"
        )
    return np.asarray(targets, np.int64)


def _relevance(references: Mapping[Key, VisdialReference], keys: Sequence[Key], num: int) -> Floats:
    rows = _rows({key: references[key].relevance for key in keys}, "relevances")
    uneven = [key for key, row in rows.items() if len(row) != num]
    if uneven:
        raise ValueError(
            f"{len(uneven)} questions do not have a relevance for each of {num} candidates: {shown(uneven)}"
        )
    matrix = np.stack(list(rows.values()))
    bad = [
        keys[row] for row in np.flatnonzero(~(np.isfinite(matrix) & (matrix >= 0)).all(1)).tolist()
    ]
    if bad:
        raise ValueError(
            f"{len(bad)} questions have a relevance that is negative or not a number: {shown(bad)}"
        )
    none = [keys[row] for row in np.flatnonzero(~matrix.any(1)).tolist()]
    if none:
        raise ValueError(
            f"{len(none)} questions have no relevant candidate, so their NDCG is undefined: {shown(none)}; "
            "remove their relevance"
        )
    return matrix
