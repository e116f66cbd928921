"""Slots, taken and given back: none twice, none lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.generate.scheduler import KVAllocator


def test_runs_grow_together_again() -> None:
    slots = KVAllocator(9)
    starts = [slots.allocate(3) for _ in range(3)]
    assert starts == [0, 3, 6]
    assert slots.allocate(1) is None
    slots.free(0, 3)
    slots.free(6, 3)
    assert (slots.num_used, slots.allocate(4)) == (3, None)
    slots.free(3, 3)
    assert (slots.allocate(9), slots.num_used) == (0, 9)


def test_an_empty_cache_has_no_slots() -> None:
    assert KVAllocator(0).allocate(1) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=60), st.randoms(use_true_random=False))
def test_no_slot_has_two_owners_and_all_come_back(counts: list[int], random: object) -> None:
    slots = KVAllocator(40)
    held: list[tuple[int, int]] = []
    for count in counts:
        first = slots.allocate(count)
        if first is not None:
            held.append((first, count))
        owned = [slot for start, many in held for slot in range(start, start + many)]
        assert len(owned) == len(set(owned)) == slots.num_used <= 40
        if held and random.random() < 0.5:  # type: ignore[attr-defined]
            slots.free(*held.pop(random.randrange(len(held))))  # type: ignore[attr-defined]
    for run in held:
        slots.free(*run)
    assert (slots.num_used, slots.allocate(40)) == (0, 0)


def test_what_is_free_cannot_be_given_back() -> None:
    slots = KVAllocator(4)
    slots.allocate(2)
    slots.free(0, 2)
    with pytest.raises(AssertionError, match="slot 0 is freed twice"):
        slots.free(0, 2)
