"""Scheduler of continuous batching: admission, KV-cache slots, prefix caching, chunked prefill.

A request is admitted, first come, first served, when the most KV-cache slots it can ever need are
free, so no running request is ever preempted. Each step decodes the next token of all requests that
have computed their prompts, and prefills up to a chunk of the prompts of the others.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from calumma.generate.params import EngineConfig, EngineStats
from calumma.generate.request import RequestState
from calumma.generate.sequence_state import SequenceState
from calumma.model.kv_cache import KVCache

MAX_DECODE_TOKENS = 8
"""A request with at most this many uncomputed tokens in each sequence, drafts aside, is decoding;
with more it is in prefill."""

MIN_PREFIX_TOKENS = 16
"""Shortest common prefix whose KV cache is copied from another sequence."""

ScheduledTokens = list[tuple[SequenceState, int]]
"""Sequences, and how many of their uncomputed tokens a step computes."""


class Scheduler:
    """Decides which requests run and which of their tokens each step computes."""

    def __init__(self, config: EngineConfig, kv_cache: KVCache) -> None:
        self.config = config
        self.running: list[RequestState] = []
        self._waiting: deque[RequestState] = deque()
        self._kv_cache = kv_cache
        self._allocator = KVAllocator(config.capacity)
        self._free_batch_slots = list(range(config.max_num_seqs))
        self._prefix_cache: deque[SequenceState] = deque()
        """Sequences of finished requests, the oldest first: at most `max_num_seqs`."""

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self._waiting and not self.running

    @property
    def stats(self) -> EngineStats:
        """Current load."""
        reservations = [state.reservation for state in self.running]
        return EngineStats(
            num_running=len(reservations),
            num_waiting=len(self._waiting),
            num_sequences=sum(reservation.num_sequences for reservation in reservations),
            num_reserved_tokens=sum(reservation.num_slots for reservation in reservations),
            max_cached_tokens=self.config.capacity,
        )

    def add_request(self, state: RequestState) -> None:
        """Queue a request."""
        self._waiting.append(state)

    def admit(self) -> RequestState | None:
        """Move the first waiting request into the batch; None if none fits."""
        if not self._waiting:
            return None
        state = self._waiting[0]
        num_sequences = self.stats.num_sequences + state.reservation.num_sequences
        if num_sequences > self.config.max_num_seqs:
            return None
        if (start_slot := self._allocate(state.reservation.num_slots)) is None:
            return None
        self.running.append(self._waiting.popleft())
        state.allocate(start_slot, self._free_batch_slots.pop())
        return state

    def schedule(self) -> tuple[ScheduledTokens, list[RequestState]]:
        """Choose the tokens of the next step by `schedule_tokens`."""
        return schedule_tokens(self.running, self._prefix_cache, self._kv_cache, self.config.prefill_chunk_size)

    def free(self, state: RequestState) -> None:
        """Remove a request; the KV cache of its context stays for prefix caching."""
        if state in self._waiting:
            self._waiting.remove(state)
            return
        self.running.remove(state)
        self._free_batch_slots.append(state.batch_slot)
        sequence = state.cond
        length = min(sequence.num_computed_tokens, len(sequence.shareable_token_ids))
        num_kept = length if self.config.enable_prefix_caching and length >= MIN_PREFIX_TOKENS else 0
        if num_kept:
            kept = SequenceState(
                sequence.token_ids[:num_kept], num_kept, sequence.start_slot, adapter=sequence.adapter
            )
            self._prefix_cache.append(kept)
        if len(self._prefix_cache) > self.config.max_num_seqs:
            self._evict_oldest()
        self._allocator.free(sequence.start_slot + num_kept, state.reservation.num_slots - num_kept)

    def _allocate(self, num_slots: int) -> int | None:
        while (start := self._allocator.allocate(num_slots)) is None and self._prefix_cache:
            self._evict_oldest()
        return start

    def _evict_oldest(self) -> None:
        sequence = self._prefix_cache.popleft()
        self._allocator.free(sequence.start_slot, sequence.num_computed_tokens)


def schedule_tokens(
    states: Sequence[RequestState], prefix_cache: Iterable[SequenceState], kv_cache: KVCache, prefill_chunk_size: int
) -> tuple[ScheduledTokens, list[RequestState]]:
    """Choose the tokens that a step computes: all of decoding requests, and a chunk of prompts.

    A request is sampled when all its sequences are computed; until then each keeps one uncomputed
    token, so that all of them end in the same step. A request without uncomputed tokens waits for
    a token in flight. Returns the tokens, and the requests that are sampled after the step.
    """
    plan: ScheduledTokens = []
    ready: list[RequestState] = []
    earlier = list(prefix_cache)
    budget = prefill_chunk_size
    for state in states:
        sequences = []
        for sequence in state.sequences:
            if sequence.num_computed_tokens or reuse_prefix(sequence, earlier, kv_cache):
                sequences.append(sequence)
            earlier.append(sequence)
        if not state.cond.num_uncomputed_tokens:
            continue
        is_decoding = all(
            sequence.num_uncomputed_tokens - state.num_parallel_tokens <= MAX_DECODE_TOKENS for sequence in sequences
        )
        num_prefill = 0 if is_decoding else sum(s.num_uncomputed_tokens for s in sequences)
        if len(sequences) == len(state.sequences) and num_prefill <= budget:
            plan += [(sequence, sequence.num_uncomputed_tokens) for sequence in sequences]
            ready.append(state)
            budget -= num_prefill
            continue
        for sequence in sequences:
            count = min(sequence.num_uncomputed_tokens - 1, budget)
            if count:
                plan.append((sequence, count))
            budget -= count
    return plan, ready


def reuse_prefix(sequence: SequenceState, earlier: Sequence[SequenceState], kv_cache: KVCache) -> bool:
    """Copy the KV cache of the longest prefix that a new sequence shares with an earlier one.

    Both have the same adapter. Returns False while the earlier sequence is still prefilling the
    shared prefix: wait for it.
    """
    start = sequence.token_ids[:MIN_PREFIX_TOKENS]
    candidates = [
        other
        for other in earlier
        if other.adapter == sequence.adapter and other.shareable_token_ids[:MIN_PREFIX_TOKENS] == start
    ]
    length, source = max(
        ((_common_prefix_length(sequence.token_ids, c.shareable_token_ids), c) for c in candidates),
        key=lambda found: found[0],
        default=(0, sequence),
    )
    # The last token is always computed: the logits after it are needed.
    length = min(length, len(sequence.token_ids) - 1)
    if length < MIN_PREFIX_TOKENS:
        return True
    if source.num_computed_tokens < length:
        return False
    kv_cache.copy_prefix(source.start_slot, sequence.start_slot, count=length)
    sequence.num_computed_tokens = length
    return True


def _common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


class KVAllocator:
    """First-fit allocator of contiguous ranges of KV-cache slots, one per request.

    >>> allocator = KVAllocator(10)
    >>> allocator.allocate(4), allocator.allocate(3), allocator.allocate(4), allocator.num_used
    (0, 4, None, 7)
    >>> allocator.free(0, 4); allocator.allocate(5) is None, allocator.allocate(2)
    (True, 0)
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = [(0, num_slots)] if num_slots else []
        """First slot and end of each free range, in order."""

    @property
    def num_used(self) -> int:
        """Number of allocated slots."""
        return self.num_slots - sum(stop - start for start, stop in self._free)

    def allocate(self, count: int) -> int | None:
        """Return the first of `count` contiguous slots, or None."""
        for index, (start, stop) in enumerate(self._free):
            if stop - start >= count:
                rest = [(start + count, stop)] if stop - start > count else []
                self._free[index : index + 1] = rest
                return start
        return None

    def free(self, start_slot: int, count: int) -> None:
        """Return allocated slots."""
        ranges = sorted([*self._free, (start_slot, start_slot + count)])
        self._free = ranges[:1]
        for start, stop in ranges[1:]:
            before = self._free[-1]
            assert start >= before[1], f"slot {start} is freed twice"
            if start == before[1]:
                self._free[-1] = (before[0], stop)
            else:
                self._free.append((start, stop))
