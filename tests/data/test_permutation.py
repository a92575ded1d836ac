import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.data.dataset import Permutation, derived_seed


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_every_number_comes_exactly_once(size: int, seed: int, epoch: int):
    permutation = Permutation(size, seed, epoch)
    assert sorted(permutation[i] for i in range(size)) == list(range(size))


def test_another_seed_or_epoch_gives_another_order():
    orders = {
        tuple(Permutation(100, seed, epoch)[i] for i in range(100))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_order_is_the_same_on_every_machine():
    order = [Permutation(10, 7, "samples", 0)[i] for i in range(10)]
    assert order == [3, 5, 6, 9, 2, 4, 8, 1, 0, 7]
    assert derived_seed("a", 1) != derived_seed("a", "1")


def test_neighbours_are_spread_over_the_whole_range():
    size = 10_000
    permutation = Permutation(size, 3)
    steps = [abs(permutation[i + 1] - permutation[i]) for i in range(size - 1)]
    assert 0.9 < (sum(steps) / len(steps)) / (size / 3) < 1.1  # uniform pairs lie size/3 apart


def test_an_index_of_a_huge_permutation_is_found_at_once():
    size = 10**15
    permutation = Permutation(size, 1)
    assert len({permutation[i] for i in range(0, size, size // 1000)}) == 1000


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index: int):
    with pytest.raises(IndexError, match="permutation of 10"):
        Permutation(10, 0)[index]


def test_a_permutation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Permutation(0, 0)
