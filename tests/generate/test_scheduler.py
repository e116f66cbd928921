"""Slots, taken and given back: none twice, none lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.generate.scheduler import Slots


def test_runs_grow_together_again() -> None:
    slots = Slots(9)
    starts = [slots.take(3) for _ in range(3)]
    assert starts == [0, 3, 6]
    assert slots.take(1) is None
    slots.give(0, 3)
    slots.give(6, 3)
    assert (slots.used, slots.take(4)) == (3, None)
    slots.give(3, 3)
    assert (slots.take(9), slots.used) == (0, 9)


def test_an_empty_cache_has_no_slots() -> None:
    assert Slots(0).take(1) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=60), st.randoms(use_true_random=False))
def test_no_slot_has_two_owners_and_all_come_back(counts: list[int], random: object) -> None:
    slots = Slots(40)
    held: list[tuple[int, int]] = []
    for count in counts:
        first = slots.take(count)
        if first is not None:
            held.append((first, count))
        owned = [slot for start, many in held for slot in range(start, start + many)]
        assert len(owned) == len(set(owned)) == slots.used <= 40
        if held and random.random() < 0.5:  # type: ignore[attr-defined]
            slots.give(*held.pop(random.randrange(len(held))))  # type: ignore[attr-defined]
    for run in held:
        slots.give(*run)
    assert (slots.used, slots.take(40)) == (0, 0)


def test_what_is_free_cannot_be_given_back() -> None:
    slots = Slots(4)
    slots.take(2)
    slots.give(0, 2)
    with pytest.raises(AssertionError, match="slot 0 is given back twice"):
        slots.give(0, 2)
