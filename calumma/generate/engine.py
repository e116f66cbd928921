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
from calumma.generate.choosing import Chooser
from calumma.generate.config import Budget, Load, Request
from calumma.generate.drawn import Drawn
from calumma.generate.reading import SHARED, Plan, Reader, plan_step
from calumma.generate.slots import Slots
from calumma.generate.work import Row, Work, work_of
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
        budget: Budget = Budget(),  # noqa: B008  (frozen)
    ) -> None:
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self.budget = budget
        self.chooser = Chooser(decoder, vocabulary, budget.rows)
        latest = self.chooser.latest
        self.reader = Reader(decoder, budget.slots, latest, captured=budget.captured)
        self._behind = latest.is_cuda if budget.behind is None else budget.behind
        self._drawn = Drawn()
        """What the host has not looked at yet."""

        self._max_tokens = decoder.config.max_tokens
        self._slots = Slots(budget.slots)
        self._seats = list(range(budget.rows))
        self._waiting: deque[Work] = deque()
        self._running: list[Work] = []
        self._ended: deque[Row] = deque()
        """What ended requests have read, oldest first: at most `budget.rows` of them."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def load(self) -> Load:
        """What there is to do, and what of the budget is taken."""
        return Load(
            running=len(self._running),
            waiting=len(self._waiting),
            rows=sum(work.extent.rows for work in self._running),
            slots_used=sum(work.extent.slots for work in self._running),
            slots=self.budget.slots,
        )

    def submit(self, request: Request) -> Work:
        """Take in a request; it waits its turn.

        Raises:
            GenerationError: the prompt is empty, too long, or its last image is broken; or the
                request would not fit into the whole budget.
        """
        work = self.prepare(request)
        self.enqueue(work)
        return work

    def prepare(self, request: Request) -> Work:
        """Check a request without taking it in; any thread may. Raises as `submit` does."""
        work = work_of(request, self.vocabulary, self.codes_per_image, self._max_tokens)
        slots, rows = work.extent.slots, work.extent.rows
        if slots > self.budget.slots or rows > self.budget.rows:
            raise GenerationError(
                f"the request may need {slots} slots in {rows} rows of the cache; expected at most "
                f"{self.budget.slots} in {self.budget.rows}. Shorten it, ask for fewer new tokens "
                "or less guidance, or give the engine a larger budget."
            )
        return work

    def enqueue(self, work: Work) -> None:
        """Take in what `prepare` made."""
        if not work.done:
            self._waiting.append(work)

    def submit_all(self, requests: Sequence[Request]) -> list[Work]:
        """Take in all requests, or none where one of them raises."""
        works = [self.prepare(request) for request in requests]
        for work in works:
            self.enqueue(work)
        return works

    def cancel(self, work: Work) -> None:
        """Stop a request between two steps; what it held is free at once."""
        if work.done:
            return
        work.end(cancelled=True)
        if work in self._waiting:
            self._waiting.remove(work)
            return
        if work in self._drawn.works:
            self._drawn.works.remove(work)
        self._leave(work)

    @torch.inference_mode()
    def step(self) -> list[tuple[Work, int]]:
        """One step of everything that runs.

        Returns:
            The ids that the host has learnt of, with whose they are, in order; none when idle, or
            while prompts are read.
        """
        chosen: list[tuple[Work, int]] = []
        if any(work.speculates for work in self._drawn.works):
            self._look(chosen)
        self._admit(chosen)
        for work in self._drawn.works:
            work.suppose()
        launched = self._launch()
        self._look(chosen)
        # Who has something to read now has got another id than was supposed.
        launched.works = [work for work in launched.works if not work.full.pending]
        self._drawn = launched
        if not self._behind:
            self._look(chosen)
        return chosen

    def _launch(self) -> Drawn:
        """Have what is to be read read, and draw behind it; the host does not wait for either."""
        for work in self._running:
            work.guess()
        plan, ready = plan_step(self._running, self._ended, self.reader, self.budget.chunk)
        if not plan:
            return Drawn()
        hidden = self.reader.read(plan)
        places = dict(zip((row for row, _ in plan), _ends(plan), strict=True))
        return self.chooser.choose(ready, hidden, places)

    def _look(self, chosen: list[tuple[Work, int]]) -> None:
        """Take in what was drawn."""
        drawn, self._drawn = self._drawn, Drawn()
        for work, ids, logprobs in drawn.told():
            stand = work.settle(ids)
            for id_, logprob in zip(ids[:stand], logprobs[:stand], strict=True):
                work.take(id_, logprob)
                chosen.append((work, id_))
            self._force(work, chosen)
            if work.done:
                self._leave(work)

    def _admit(self, chosen: list[tuple[Work, int]]) -> None:
        """Give room to those who wait, in their order, as long as the first one fits."""
        while self._waiting:
            work = self._waiting[0]
            rows = sum(one.extent.rows for one in self._running) + work.extent.rows
            first = self._room(work.extent.slots) if rows <= self.budget.rows else None
            if first is None:
                return
            self._running.append(self._waiting.popleft())
            work.place(first, self._seats.pop())
            self.chooser.seat(work)
            self._force(work, chosen)
            if work.done:
                self._leave(work)

    def _force(self, work: Work, chosen: list[tuple[Work, int]]) -> None:
        """Add what the grammar leaves no choice of: it needs no model."""
        while not work.done and (id_ := work.grammar.forced) is not None:
            work.take(id_, 0.0)
            self.chooser.note(work, [id_])
            chosen.append((work, id_))

    def _room(self, slots: int) -> int | None:
        """So many free slots, for which what has ended makes way; None while there are not."""
        while (first := self._slots.take(slots)) is None and self._ended:
            self._forget_oldest()
        return first

    def _forget_oldest(self) -> None:
        row = self._ended.popleft()
        self._slots.give(row.first, row.length)

    def _leave(self, work: Work) -> None:
        self._running.remove(work)
        self._seats.append(work.seat)
        row = work.full
        kept = row.length if self.budget.keep_ended and row.length >= SHARED else 0
        if kept:
            self._ended.append(Row(row.ids[:kept], kept, row.first))
        if len(self._ended) > self.budget.rows:
            self._forget_oldest()
        self._slots.give(row.first + kept, work.extent.slots - kept)

    def follow(self, works: Sequence[Work]) -> Iterator[tuple[Work, int]]:
        """Step until these requests are done; yields their new ids as they are chosen.

        Whoever stops listening cancels those that are not done.
        """
        told = dict.fromkeys(works, 0)
        try:
            while True:
                over = all(work.done for work in works)
                for work in works:
                    new = work.ids[told[work] :]
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
