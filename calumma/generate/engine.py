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
from calumma.generate.model_runner import SHARED, Plan, Reader, plan_step
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.request import RequestState, SequenceState, build_request_state
from calumma.generate.sampler import Chooser
from calumma.generate.scheduler import Slots
from calumma.generate.step_output import Drawn
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
        budget: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    ) -> None:
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self.budget = budget
        self.chooser = Chooser(decoder, vocabulary, budget.max_num_seqs)
        latest = self.chooser.latest
        self.reader = Reader(decoder, budget.max_cached_tokens, latest, captured=budget.cuda_graphs)
        self._behind = (
            latest.is_cuda if budget.async_scheduling is None else budget.async_scheduling
        )
        self._drawn = Drawn()
        """What the host has not looked at yet."""

        self._max_tokens = decoder.config.max_seq_len
        self._slots = Slots(budget.max_cached_tokens)
        self._seats = list(range(budget.max_num_seqs))
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._ended: deque[SequenceState] = deque()
        """What ended requests have read, oldest first: at most `budget.rows` of them."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def load(self) -> EngineStats:
        """What there is to do, and what of the budget is taken."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_sequences=sum(work.reservation.num_sequences for work in self._running),
            num_reserved_tokens=sum(work.reservation.num_slots for work in self._running),
            max_cached_tokens=self.budget.max_cached_tokens,
        )

    def submit(self, request: Request) -> RequestState:
        """Take in a request; it waits its turn.

        Raises:
            GenerationError: the prompt is empty, too long, or its last image is broken; or the
                request would not fit into the whole budget.
        """
        work = self.prepare(request)
        self.enqueue(work)
        return work

    def prepare(self, request: Request) -> RequestState:
        """Check a request without taking it in; any thread may. Raises as `submit` does."""
        work = build_request_state(request, self.vocabulary, self.codes_per_image, self._max_tokens)
        slots, rows = work.reservation.num_slots, work.reservation.num_sequences
        if slots > self.budget.max_cached_tokens or rows > self.budget.max_num_seqs:
            raise GenerationError(
                f"the request may need {slots} slots in {rows} rows of the cache; expected at most "
                f"{self.budget.max_cached_tokens} in {self.budget.max_num_seqs}. Shorten it, ask for fewer new tokens "
                "or less guidance, or give the engine a larger budget."
            )
        return work

    def enqueue(self, work: RequestState) -> None:
        """Take in what `prepare` made."""
        if not work.is_finished:
            self._waiting.append(work)

    def submit_all(self, requests: Sequence[Request]) -> list[RequestState]:
        """Take in all requests, or none where one of them raises."""
        works = [self.prepare(request) for request in requests]
        for work in works:
            self.enqueue(work)
        return works

    def cancel(self, work: RequestState) -> None:
        """Stop a request between two steps; what it held is free at once."""
        if work.is_finished:
            return
        work.finish(cancelled=True)
        if work in self._waiting:
            self._waiting.remove(work)
            return
        if work in self._drawn.works:
            self._drawn.works.remove(work)
        self._leave(work)

    @torch.inference_mode()
    def step(self) -> list[tuple[RequestState, int]]:
        """One step of everything that runs.

        Returns:
            The ids that the host has learnt of, with whose they are, in order; none when idle, or
            while prompts are read.
        """
        chosen: list[tuple[RequestState, int]] = []
        if any(work.is_speculating for work in self._drawn.works):
            self._look(chosen)
        self._admit(chosen)
        for work in self._drawn.works:
            work.append_placeholder()
        launched = self._launch()
        self._look(chosen)
        # Who has something to read now has got another id than was supposed.
        launched.works = [work for work in launched.works if not work.cond.num_uncomputed_tokens]
        self._drawn = launched
        if not self._behind:
            self._look(chosen)
        return chosen

    def _launch(self) -> Drawn:
        """Have what is to be read read, and draw behind it; the host does not wait for either."""
        for work in self._running:
            work.append_drafts()
        plan, ready = plan_step(
            self._running, self._ended, self.reader, self.budget.prefill_chunk_size
        )
        if not plan:
            return Drawn()
        hidden = self.reader.read(plan)
        places = dict(zip((row for row, _ in plan), _ends(plan), strict=True))
        return self.chooser.choose(ready, hidden, places)

    def _look(self, chosen: list[tuple[RequestState, int]]) -> None:
        """Take in what was drawn."""
        drawn, self._drawn = self._drawn, Drawn()
        for work, ids, logprobs in drawn.told():
            stand = work.verify(ids)
            for id_, logprob in zip(ids[:stand], logprobs[:stand], strict=True):
                work.append_token(id_, logprob)
                chosen.append((work, id_))
            self._force(work, chosen)
            if work.is_finished:
                self._leave(work)

    def _admit(self, chosen: list[tuple[RequestState, int]]) -> None:
        """Give room to those who wait, in their order, as long as the first one fits."""
        while self._waiting:
            work = self._waiting[0]
            rows = (
                sum(one.reservation.num_sequences for one in self._running)
                + work.reservation.num_sequences
            )
            first = (
                self._room(work.reservation.num_slots) if rows <= self.budget.max_num_seqs else None
            )
            if first is None:
                return
            self._running.append(self._waiting.popleft())
            work.allocate(first, self._seats.pop())
            self.chooser.seat(work)
            self._force(work, chosen)
            if work.is_finished:
                self._leave(work)

    def _force(self, work: RequestState, chosen: list[tuple[RequestState, int]]) -> None:
        """Add what the grammar leaves no choice of: it needs no model."""
        while not work.is_finished and (id_ := work.grammar.forced) is not None:
            work.append_token(id_, 0.0)
            self.chooser.note(work, [id_])
            chosen.append((work, id_))

    def _room(self, slots: int) -> int | None:
        """So many free slots, for which what has ended makes way; None while there are not."""
        while (first := self._slots.take(slots)) is None and self._ended:
            self._forget_oldest()
        return first

    def _forget_oldest(self) -> None:
        row = self._ended.popleft()
        self._slots.give(row.start_slot, row.num_computed_tokens)

    def _leave(self, work: RequestState) -> None:
        self._running.remove(work)
        self._seats.append(work.batch_slot)
        row = work.cond
        kept = (
            row.num_computed_tokens
            if self.budget.enable_prefix_caching and row.num_computed_tokens >= SHARED
            else 0
        )
        if kept:
            self._ended.append(SequenceState(row.token_ids[:kept], kept, row.start_slot))
        if len(self._ended) > self.budget.max_num_seqs:
            self._forget_oldest()
        self._slots.give(row.start_slot + kept, work.reservation.num_slots - kept)

    def follow(self, works: Sequence[RequestState]) -> Iterator[tuple[RequestState, int]]:
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
                self.cancel(work)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, int]]:
        """Generate for all requests; yields (request number, new id) as ids are chosen."""
        works = self.submit_all(requests)
        numbers = {work: number for number, work in enumerate(works)}
        yield from ((numbers[work], id_) for work, id_ in self.follow(works))


def _ends(plan: Plan) -> Iterator[int]:
    """Where each row's last id stands among all that are read."""
    return (stop - 1 for stop in accumulate(count for _, count in plan))
