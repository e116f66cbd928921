"""The computed permutation: a bijection, different for each seed, without a pattern."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.batches.shuffle import FeistelPermutation, shuffled_index


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 1 << 40))
def test_every_index_occurs_once(size: int, seed: int) -> None:
    order = FeistelPermutation(size, [seed, 7])
    assert len(order) == size
    assert sorted(order) == list(range(size))


def test_the_same_seed_gives_the_same_order_and_another_gives_another() -> None:
    one, again, other = (
        FeistelPermutation(100, [1, 2]),
        FeistelPermutation(100, [1, 2]),
        FeistelPermutation(100, [2, 1]),
    )
    assert list(one) == list(again) != list(other)


def test_indices_and_their_neighbors_are_spread() -> None:
    size = 2000
    order = np.array([FeistelPermutation(size, [seed])[index] for seed in range(5) for index in range(size)])
    order = order.reshape(5, size)
    for row in order:
        assert abs(np.corrcoef(row, np.arange(size))[0, 1]) < 0.08
        assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.08
    # A random order keeps one neighbor on average, whatever its length.
    assert np.mean(np.abs(np.diff(order)) == 1) * size < 6


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_in_short_permutations_each_index_is_first_equally_often(size: int) -> None:
    firsts = np.bincount([FeistelPermutation(size, [seed])[0] for seed in range(4000)], minlength=size)
    expected = 4000 / size
    chi_square = float(((firsts - expected) ** 2 / expected).sum())
    assert chi_square < size - 1 + 5 * (2 * (size - 1)) ** 0.5


def test_a_size_of_a_trillion_is_fast() -> None:
    order = FeistelPermutation(10**12, [3])
    found = {order[index] for index in range(500)}
    assert len(found) == 500
    assert min(found) < 10**11 < 9 * 10**11 < max(found)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        FeistelPermutation(4, [0])[index]


def test_each_index_comes_once_an_epoch_in_another_order() -> None:
    first, second = ([shuffled_index(start + i, 50, 3) for i in range(50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != [shuffled_index(i, 50, 4) for i in range(50)]


def test_order_is_the_one_of_earlier_versions() -> None:
    order = np.random.default_rng([3, 1]).permutation(7)
    assert [shuffled_index(7 + i, 7, 3) for i in range(7)] == order.tolist()
