"""Who has which slots of the cache: each request one run of them, for as long as it lives."""

from __future__ import annotations


class KVAllocator:
    """Runs of free slots; the lowest that is long enough is taken.

    >>> slots = Slots(10)
    >>> slots.take(4), slots.take(3), slots.take(4), slots.used
    (0, 4, None, 7)
    >>> slots.give(0, 4); slots.take(5) is None, slots.take(2)
    (True, 0)
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = [(0, num_slots)] if num_slots else []
        """First slot and the one behind the last, of each free run, in order."""

    @property
    def num_used(self) -> int:
        """How many are taken."""
        return self.num_slots - sum(stop - start for start, stop in self._free)

    def allocate(self, count: int) -> int | None:
        """The first of `count` slots side by side, or None where there are not so many."""
        for place, (start, stop) in enumerate(self._free):
            if stop - start >= count:
                rest = [(start + count, stop)] if stop - start > count else []
                self._free[place : place + 1] = rest
                return start
        return None

    def free(self, first: int, count: int) -> None:
        """Take back what `take` gave."""
        runs = sorted([*self._free, (first, first + count)])
        self._free = runs[:1]
        for start, stop in runs[1:]:
            before = self._free[-1]
            assert start >= before[1], f"slot {start} is given back twice"
            if start == before[1]:
                self._free[-1] = (before[0], stop)
            else:
                self._free.append((start, stop))
