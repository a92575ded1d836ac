"""The bootstrap, ids and means that every metric shares."""

import math

import numpy as np
import pytest

from emu.eval.metrics.metric import (
    Bootstrap,
    aligned_keys,
    grouped_means,
    keyed,
    mean_score,
    require,
)


def test_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = Bootstrap(4000, 0.95, seed=1).interval(values)
    assert interval is not None
    half = 1.96 * values.std() / 20
    assert (interval.low, interval.high) == (
        pytest.approx(values.mean() - half, abs=0.03),
        pytest.approx(values.mean() + half, abs=0.03),
    )


def test_interval_of_a_ratio_resamples_its_parts_together():
    rows = np.stack([np.arange(1, 101.0), 2 * np.arange(1, 101.0)], axis=1)
    interval = Bootstrap(50).interval(rows, lambda sums: sums[:, 0] / sums[:, 1])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.5, 0.5))


def test_resamples_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).random(50)
    whole = Bootstrap(64, seed=3).interval(values)
    monkeypatch.setattr("emu.eval.metrics.metric._INDICES_PER_BLOCK", 50)
    blocks = Bootstrap(64, seed=3).interval(values)
    assert whole is not None and blocks is not None
    # sums over blocks of other sizes may be added in another order
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_no_resamples_give_no_interval():
    assert Bootstrap(0).interval(np.ones(3)) is None


def test_a_mean_with_a_score_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="m: 2 samples have no finite score: 'b', 'c'"):
        mean_score("m", {"a": 1.0, "b": math.nan, "c": math.inf}, Bootstrap(0))


def test_ids_keep_the_order_of_the_references_and_only_five_are_named():
    assert aligned_keys({2: "", 1: ""}, {1: "", 2: ""}) == [1, 2]
    with pytest.raises(
        ValueError, match=r"7 of 7 references have no prediction \(0, 1, 2, 3, 4, \.\.\.\)"
    ):
        aligned_keys({}, dict.fromkeys(range(7)))


def test_duplicate_ids_are_named():
    with pytest.raises(ValueError, match="file: 1 ids appear more than once: 'a'"):
        keyed([("a", 1), ("b", 2), ("a", 1)], "file")


def test_means_of_groups_keep_their_order():
    assert list(grouped_means([1, 0, 0.5], ["x", "y", "x"], 100).items()) == [("x", 75), ("y", 0)]


@pytest.mark.parametrize("distribution", ["normal", "exponential"])
def test_intervals_cover_the_true_mean_at_about_the_nominal_rate(distribution: str):
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        values = getattr(generator, distribution)(size=200)
        interval = Bootstrap(200, 0.9, seed).interval(values)
        assert interval is not None
        covered += interval.low <= float(distribution == "exponential") <= interval.high
    # three standard deviations for 400 trials are 0.045
    assert covered / 400 == pytest.approx(0.9, abs=0.045)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_resamples": -1},
            "num_resamples is -1, give a whole number of at least 0 .0 leaves out",
        ),
        ({"seed": -1}, "seed is -1, give a whole number of at least 0"),
        (
            {"confidence": 95},
            "confidence is 95, give .*above 0 and below 1 .a fraction such as",
        ),
    ],
)
def test_a_bootstrap_out_of_range_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Bootstrap(**options)


def test_long_values_are_truncated_in_messages():
    with pytest.raises(ValueError, match="p: 1 values are not str") as caught:
        require({"a" * 1000: ["b"] * 1000}, str, "p")
    assert len(str(caught.value)) < 250
    with pytest.raises(ValueError, match="have no prediction") as caught:
        aligned_keys({}, {"a" * 1000: 0})
    assert len(str(caught.value)) < 250


def test_only_the_side_that_lacks_ids_is_named():
    with pytest.raises(ValueError) as caught:
        aligned_keys({"a": 0, "b": 0}, {"a": 0})
    assert str(caught.value) == "1 of 2 predictions have no reference ('b')"
