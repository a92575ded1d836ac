"""Ranks and gains of candidates against plain loops."""

import math
import random

import numpy as np
import pytest

from emu.eval.metrics.metric import Bootstrap
from emu.eval.metrics.visdial import (
    Visdial,
    VisdialReference,
    ndcg,
    ranks,
    target_ranks,
    visdial_scores,
)

NO_INTERVAL = Bootstrap(0)
GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.integers(0, 30, (40, 20)).astype(np.float64)  # with ties
TARGETS = GENERATOR.integers(0, 20, 40)
RELEVANCE = np.where(GENERATOR.random((40, 20)) < 0.3, GENERATOR.integers(1, 6, (40, 20)) / 5, 0)
RELEVANCE[:, 0] = 0.2


def plain_order(row: np.ndarray) -> list[int]:
    return sorted(range(len(row)), key=lambda index: -row[index])


def plain_ndcg(row: np.ndarray, relevance: np.ndarray) -> float:
    k = sum(value != 0 for value in relevance)
    gained = sum(
        relevance[index] / math.log2(place + 2) for place, index in enumerate(plain_order(row)[:k])
    )
    best = sum(
        value / math.log2(place + 2)
        for place, value in enumerate(sorted(relevance, reverse=True)[:k])
    )
    return gained / best


def test_ranks_are_those_of_a_stable_sort():
    expected = [[plain_order(row).index(index) + 1 for index in range(20)] for row in SCORES]
    assert ranks(SCORES).tolist() == expected
    assert target_ranks(SCORES, TARGETS).tolist() == [
        row[target] for row, target in zip(expected, TARGETS, strict=True)
    ]


def test_worst_ties_put_the_answer_last():
    same = np.ones((1, 5))
    assert target_ranks(same, [1]).tolist() == [2]
    assert target_ranks(same, [1], "worst").tolist() == [5]
    relevance = np.array([[1.0, 0, 0, 0, 0]])
    assert ndcg(same, relevance).tolist() == [1]
    assert ndcg(same, relevance, "worst").tolist() == [0]


def test_ndcg_is_that_of_a_plain_loop():
    expected = [
        plain_ndcg(row, relevance) for row, relevance in zip(SCORES, RELEVANCE, strict=True)
    ]
    assert ndcg(SCORES, RELEVANCE).tolist() == pytest.approx(expected)
    assert ndcg(RELEVANCE, RELEVANCE).tolist() == pytest.approx([1] * 40)


def test_every_measure_of_two_questions():
    predictions = {"a_1": [0.1, 0.9, 0.5], "b_1": [3.0, 2.0, 1.0]}
    references = {"a_1": VisdialReference(2), "b_1": VisdialReference(2, [0, 0.5, 1])}
    scores = {
        score.name: score
        for score in visdial_scores(predictions, references, bootstrap=NO_INTERVAL)
    }
    assert {name: score.value for name, score in scores.items()} == {
        "ndcg": pytest.approx((0.5 / math.log2(3)) / (1 + 0.5 / math.log2(3))),
        "mrr": pytest.approx((1 / 2 + 1 / 3) / 2),
        "r@1": 0,
        "r@5": 1,
        "r@10": 1,
        "mean_rank": 2.5,
    }
    assert list(scores["ndcg"].samples) == ["b_1"]


def test_released_ranks_as_negative_scores_give_the_same_ranks():
    order = list(range(1, 101))
    random.Random(0).shuffle(order)
    assert ranks(-np.array([order], np.float64)).tolist() == [order]


@pytest.mark.parametrize(
    ("predictions", "reference", "message"),
    [
        ([1.0, math.nan], VisdialReference(0), "not numbers .NaN.: 'q'"),
        ([1.0, 2.0], VisdialReference(2), "1 targets are not indices of 2 candidates"),
        ([1.0, 2.0], VisdialReference(0, [0, 0]), "no relevant candidate"),
        ([1.0, 2.0], VisdialReference(0, [1]), "do not have a relevance for each of 2"),
        ([1.0, 2.0], VisdialReference(0, [1, math.nan]), "negative or not a number"),
    ],
)
def test_bad_input_is_named(predictions: list[float], reference: VisdialReference, message: str):
    with pytest.raises(ValueError, match=message):
        visdial_scores({"q": predictions}, {"q": reference}, bootstrap=NO_INTERVAL)


def test_uneven_rows_and_missing_questions_are_named():
    references = {1: VisdialReference(0), 2: VisdialReference(0)}
    with pytest.raises(ValueError, match="1 questions do not have 2 scores"):
        Visdial("mrr", bootstrap=NO_INTERVAL)({1: [1.0, 2.0], 2: [1.0]}, references)
    with pytest.raises(ValueError, match="1 of 2 references have no prediction"):
        visdial_scores({1: [1.0, 2.0]}, references, bootstrap=NO_INTERVAL)


def test_rows_may_be_arrays():
    target = np.array([0, 2, 1]).argmax()
    reference = VisdialReference(target, np.array([0, 1, 0.5]))  # type: ignore[arg-type]
    row = np.array([1, 3, 2])
    scores = visdial_scores({"q": row}, {"q": reference}, bootstrap=NO_INTERVAL)  # type: ignore[dict-item]
    assert [score.value for score in scores][:2] == pytest.approx([1, 1], rel=1e-12)


@pytest.mark.parametrize(
    ("row", "reference", "message"),
    [
        (3.0, VisdialReference(0), "1 questions have scores that are not a list of numbers: 'q'"),
        ([1.0, [2.0]], VisdialReference(0), "not a list of numbers: 'q'"),
        ([1.0, "2"], VisdialReference(0), "not a list of numbers: 'q'"),
        ([1.0, None], VisdialReference(0), "not a list of numbers: 'q'"),
        ([1.0, 2.0], VisdialReference(0.5), "targets: 1 values are not int: 'q': 0.5"),  # type: ignore[arg-type]
        ([1.0, 2.0], VisdialReference(0, ["1", "0"]), "relevances that are not a list of numbers"),  # type: ignore[list-item]
        ([1.0, 2.0], VisdialReference(0, [0, 0]), "no relevant candidate.*: 'q'"),
    ],
)
def test_values_that_are_not_lists_of_numbers_are_named(
    row: object, reference: VisdialReference, message: str
):
    with pytest.raises(ValueError, match=message):
        visdial_scores({"q": row}, {"q": reference}, bootstrap=NO_INTERVAL)  # type: ignore[dict-item]


def test_unknown_measures_and_ties_are_named():
    with pytest.raises(ValueError, match="measure is 'map', give one of 'ndcg', 'mrr'"):
        Visdial("map")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ties is 'best', give one of 'first' or 'worst'"):
        Visdial("mrr", "best")  # type: ignore[arg-type]


def test_questions_count_in_the_measures_that_can_score_them():
    references = {1: VisdialReference(0), 2: VisdialReference(None, [0.0, 1.0])}
    scores = visdial_scores({1: [1.0, 2.0], 2: [1.0, 2.0]}, references, "first", NO_INTERVAL)
    assert {score.name: list(score.samples) for score in scores[:2]} == {"ndcg": [2], "mrr": [1]}
    with pytest.raises(ValueError, match="1 references have neither target nor relevance: 3"):
        visdial_scores({3: [1.0]}, {3: VisdialReference(None)})
