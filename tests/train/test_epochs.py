"""Orders of epochs."""

from __future__ import annotations

import numpy as np

from calumma.train.epochs import drawn


def test_each_thing_comes_once_an_epoch_in_another_order() -> None:
    first, second = ([drawn(start + place, 50, 3) for place in range(50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != [drawn(place, 50, 4) for place in range(50)]


def test_the_order_is_the_one_that_runs_were_begun_with() -> None:
    order = np.random.default_rng([3, 1]).permutation(7)
    assert [drawn(7 + place, 7, 3) for place in range(7)] == order.tolist()
