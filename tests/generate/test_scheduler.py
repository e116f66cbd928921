"""KV-cache slots: none allocated twice, none lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.generate.scheduler import KVAllocator


def test_free_ranges_merge() -> None:
    allocator = KVAllocator(9)
    starts = [allocator.allocate(3) for _ in range(3)]
    assert starts == [0, 3, 6]
    assert allocator.allocate(1) is None
    allocator.free(0, 3)
    allocator.free(6, 3)
    assert (allocator.num_used, allocator.allocate(4)) == (3, None)
    allocator.free(3, 3)
    assert (allocator.allocate(9), allocator.num_used) == (0, 9)


def test_an_empty_cache_has_no_slots() -> None:
    assert KVAllocator(0).allocate(1) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=60), st.randoms(use_true_random=False))
def test_no_slot_is_allocated_twice_and_all_are_freed(counts: list[int], random: object) -> None:
    allocator = KVAllocator(40)
    held: list[tuple[int, int]] = []
    for count in counts:
        first = allocator.allocate(count)
        if first is not None:
            held.append((first, count))
        allocated = [slot for start, many in held for slot in range(start, start + many)]
        assert len(allocated) == len(set(allocated)) == allocator.num_used <= 40
        if held and random.random() < 0.5:  # type: ignore[attr-defined]
            allocator.free(*held.pop(random.randrange(len(held))))  # type: ignore[attr-defined]
    for run in held:
        allocator.free(*run)
    assert (allocator.num_used, allocator.allocate(40)) == (0, 0)


def test_slots_cannot_be_freed_twice() -> None:
    allocator = KVAllocator(4)
    allocator.allocate(2)
    allocator.free(0, 2)
    with pytest.raises(AssertionError, match="slot 0 is freed twice"):
        allocator.free(0, 2)
