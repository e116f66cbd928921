"""Many requests at once through one decoder, each in its own state.

Every request has one row of the cache for its whole context. While it draws an image with
guidance it has one or two more, for the prompt's images alone and for no prompt; they are read
in once when the image begins, fed the same codes, and dropped when it ends.

On a GPU a step is launched before the host knows what the last one drew (`Budget.behind`). Where
something other comes than was supposed, the draw that was made behind it is nobody's, and its
request goes on from what did come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from calumma.errors import GenerationError
from calumma.generate.model_runner import MIN_PREFIX_TOKENS, ModelRunner, ScheduledTokens, schedule
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.request import RequestState, SequenceState, build_request_state
from calumma.generate.sampler import Sampler
from calumma.generate.scheduler import KVAllocator
from calumma.generate.step_output import StepOutput
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary


class Engine:
    """Runs requests to their ends, first come, first served. One thread may use it at a time."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        codes_per_image: int,
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    ) -> None:
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self.config = config
        self.sampler = Sampler(decoder, vocabulary, config.max_num_seqs)
        latest = self.sampler.last_token_ids
        self.model_runner = ModelRunner(
            decoder, config.max_cached_tokens, latest, cuda_graphs=config.cuda_graphs
        )
        self._async_scheduling = (
            latest.is_cuda if config.async_scheduling is None else config.async_scheduling
        )
        self._in_flight = StepOutput()
        """What the host has not looked at yet."""

        self._max_model_len = decoder.config.max_seq_len
        self._kv_allocator = KVAllocator(config.max_cached_tokens)
        self._free_batch_slots = list(range(config.max_num_seqs))
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._prefix_cache: deque[SequenceState] = deque()
        """What ended requests have read, oldest first: at most `budget.rows` of them."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def stats(self) -> EngineStats:
        """What there is to do, and what of the budget is taken."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_sequences=sum(work.reservation.num_sequences for work in self._running),
            num_reserved_tokens=sum(work.reservation.num_slots for work in self._running),
            max_cached_tokens=self.config.max_cached_tokens,
        )

    def submit(self, request: Request) -> RequestState:
        """Take in a request; it waits its turn.

        Raises:
            GenerationError: the prompt is empty, too long, or its last image is broken; or the
                request would not fit into the whole budget.
        """
        work = self.make_request(request)
        self.add_request(work)
        return work

    def make_request(self, request: Request) -> RequestState:
        """Check a request without taking it in; any thread may. Raises as `submit` does."""
        work = build_request_state(
            request, self.vocabulary, self.codes_per_image, self._max_model_len
        )
        slots, rows = work.reservation.num_slots, work.reservation.num_sequences
        if slots > self.config.max_cached_tokens or rows > self.config.max_num_seqs:
            raise GenerationError(
                f"the request may need {slots} slots in {rows} rows of the cache; expected at most "
                f"{self.config.max_cached_tokens} in {self.config.max_num_seqs}. Shorten it, ask for fewer new tokens "
                "or less guidance, or give the engine a larger budget."
            )
        return work

    def add_request(self, work: RequestState) -> None:
        """Take in what `prepare` made."""
        if not work.is_finished:
            self._waiting.append(work)

    def submit_all(self, requests: Sequence[Request]) -> list[RequestState]:
        """Take in all requests, or none where one of them raises."""
        works = [self.make_request(request) for request in requests]
        for work in works:
            self.add_request(work)
        return works

    def abort(self, work: RequestState) -> None:
        """Stop a request between two steps; what it held is free at once."""
        if work.is_finished:
            return
        work.finish(cancelled=True)
        if work in self._waiting:
            self._waiting.remove(work)
            return
        if work in self._in_flight.requests:
            self._in_flight.requests.remove(work)
        self._free_request(work)

    @torch.inference_mode()
    def step(self) -> list[tuple[RequestState, int]]:
        """One step of everything that runs.

        Returns:
            The ids that the host has learnt of, with whose they are, in order; none when idle, or
            while prompts are read.
        """
        chosen: list[tuple[RequestState, int]] = []
        if any(work.is_speculating for work in self._in_flight.requests):
            self._process_outputs(chosen)
        self._schedule_waiting(chosen)
        for work in self._in_flight.requests:
            work.append_placeholder()
        launched = self._execute()
        self._process_outputs(chosen)
        # Who has something to read now has got another id than was supposed.
        launched.requests = [
            work for work in launched.requests if not work.cond.num_uncomputed_tokens
        ]
        self._in_flight = launched
        if not self._async_scheduling:
            self._process_outputs(chosen)
        return chosen

    def _execute(self) -> StepOutput:
        """Have what is to be read read, and draw behind it; the host does not wait for either."""
        for work in self._running:
            work.append_drafts()
        plan, ready = schedule(
            self._running, self._prefix_cache, self.model_runner, self.config.prefill_chunk_size
        )
        if not plan:
            return StepOutput()
        hidden = self.model_runner.execute(plan)
        places = dict(zip((row for row, _ in plan), _last_positions(plan), strict=True))
        return self.sampler.sample(ready, hidden, places)

    def _process_outputs(self, chosen: list[tuple[RequestState, int]]) -> None:
        """Take in what was drawn."""
        drawn, self._in_flight = self._in_flight, StepOutput()
        for work, ids, logprobs in drawn.get_output():
            stand = work.verify(ids)
            for id_, logprob in zip(ids[:stand], logprobs[:stand], strict=True):
                work.append_token(id_, logprob)
                chosen.append((work, id_))
            self._append_forced_tokens(work, chosen)
            if work.is_finished:
                self._free_request(work)

    def _schedule_waiting(self, chosen: list[tuple[RequestState, int]]) -> None:
        """Give room to those who wait, in their order, as long as the first one fits."""
        while self._waiting:
            work = self._waiting[0]
            rows = (
                sum(one.reservation.num_sequences for one in self._running)
                + work.reservation.num_sequences
            )
            first = (
                self._allocate(work.reservation.num_slots)
                if rows <= self.config.max_num_seqs
                else None
            )
            if first is None:
                return
            self._running.append(self._waiting.popleft())
            work.allocate(first, self._free_batch_slots.pop())
            self.sampler.add_request(work)
            self._append_forced_tokens(work, chosen)
            if work.is_finished:
                self._free_request(work)

    def _append_forced_tokens(
        self, work: RequestState, chosen: list[tuple[RequestState, int]]
    ) -> None:
        """Add what the grammar leaves no choice of: it needs no model."""
        while not work.is_finished and (id_ := work.grammar.forced_token) is not None:
            work.append_token(id_, 0.0)
            self.sampler.mark_seen(work, [id_])
            chosen.append((work, id_))

    def _allocate(self, slots: int) -> int | None:
        """So many free slots, for which what has ended makes way; None while there are not."""
        while (first := self._kv_allocator.allocate(slots)) is None and self._prefix_cache:
            self._evict_oldest()
        return first

    def _evict_oldest(self) -> None:
        row = self._prefix_cache.popleft()
        self._kv_allocator.free(row.start_slot, row.num_computed_tokens)

    def _free_request(self, work: RequestState) -> None:
        self._running.remove(work)
        self._free_batch_slots.append(work.batch_slot)
        row = work.cond
        kept = (
            row.num_computed_tokens
            if self.config.enable_prefix_caching and row.num_computed_tokens >= MIN_PREFIX_TOKENS
            else 0
        )
        if kept:
            self._prefix_cache.append(SequenceState(row.token_ids[:kept], kept, row.start_slot))
        if len(self._prefix_cache) > self.config.max_num_seqs:
            self._evict_oldest()
        self._kv_allocator.free(row.start_slot + kept, work.reservation.num_slots - kept)

    def stream_tokens(self, works: Sequence[RequestState]) -> Iterator[tuple[RequestState, int]]:
        """Step until these requests are done; yields their new ids as they are chosen.

        Whoever stops listening cancels those that are not done.
        """
        told = dict.fromkeys(works, 0)
        try:
            while True:
                over = all(work.is_finished for work in works)
                for work in works:
                    new = work.output_token_ids[told[work] :]
                    told[work] += len(new)
                    yield from ((work, id_) for id_ in new)
                if over:
                    return
                self.step()
        finally:
            for work in works:
                self.abort(work)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, int]]:
        """Generate for all requests; yields (request number, new id) as ids are chosen."""
        works = self.submit_all(requests)
        numbers = {work: number for number, work in enumerate(works)}
        yield from ((numbers[work], id_) for work, id_ in self.stream_tokens(works))


def _last_positions(plan: ScheduledTokens) -> Iterator[int]:
    """Where each row's last id stands among all that are read."""
    return (stop - 1 for stop in accumulate(count for _, count in plan))
