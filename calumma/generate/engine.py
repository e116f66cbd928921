"""Many requests at once through one decoder, each in its own state.

Every request has one row of the cache for its whole context. While it draws an image with
guidance it has one or two more, for the prompt's images alone and for no prompt; they are read
in once when the image begins, fed the same codes, and dropped when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from calumma.errors import GenerationError
from calumma.generate.config import Budget, Load, Request
from calumma.generate.grammar import Next
from calumma.generate.sampling import chances, draw, guided, masks, penalise
from calumma.generate.work import Row, Work, work_of
from calumma.model.cache import Cache
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

SLOTS = 64
"""The cache grows by this many slots at a time."""


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
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self.budget = budget
        self.device = decoder.embedding.weight.device
        self.masks = masks(vocabulary, self.device)
        self._waiting: deque[Work] = deque()
        self._running: list[Work] = []
        self._cache = Cache(decoder.config, 0, SLOTS, decoder.embedding.weight)
        self._in_cache: list[Row] = []

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
            rows=sum(self._rows(work) for work in self._running),
            slots_used=sum(self._slots(work) for work in self._running),
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
        longest = self.decoder.config.max_tokens
        work = work_of(request, self.vocabulary, self.codes_per_image, longest)
        slots, rows = self._slots(work), self._rows(work)
        if slots > self.budget.slots or rows > self.budget.rows:
            raise GenerationError(
                f"the request may need {slots} slots in {rows} rows of the cache; wanted at most "
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

    def _slots(self, work: Work) -> int:
        return self._rows(work) * (len(work.request.ids) + work.request.max_new_tokens)

    def _rows(self, work: Work) -> int:
        return 3

    def cancel(self, work: Work) -> None:
        """Stop a request between two steps; what it held is free at once."""
        if work.done:
            return
        work.end(cancelled=True)
        if work in self._waiting:
            self._waiting.remove(work)
        else:
            self._running.remove(work)

    @torch.inference_mode()
    def step(self) -> list[tuple[Work, int]]:
        """One step of everything that runs.

        Returns:
            The ids that were chosen, with whose they are, in order; none when idle, or while
            prompts are read.
        """
        chosen: list[tuple[Work, int]] = []
        while self._waiting and self._fits(self._waiting[0]):
            work = self._waiting.popleft()
            self._running.append(work)
            self._force(work, chosen)
        if not self._running:
            return chosen
        rows = [row for work in self._running for row in work.rows]
        self._fit(self._cache, self._in_cache, rows)
        self._in_cache = rows
        logits = self._read(rows, self._cache)
        ids, logprobs = self._choose(self._running, logits)
        for work, id_, logprob in zip(self._running, ids, logprobs, strict=True):
            work.take(id_, logprob)
            chosen.append((work, id_))
            self._force(work, chosen)
        self._running = [work for work in self._running if not work.done]
        return chosen

    def _fits(self, work: Work) -> bool:
        load = self.load
        return (
            load.slots_used + self._slots(work) <= self.budget.slots
            and load.rows + self._rows(work) <= self.budget.rows
        )

    def _force(self, work: Work, chosen: list[tuple[Work, int]]) -> None:
        while not work.done and (id_ := work.grammar.forced) is not None:
            work.take(id_, 0.0)
            chosen.append((work, id_))

    def follow(self, works: Sequence[Work]) -> Iterator[tuple[Work, int]]:
        """Step until these requests are done; yields their new ids as they are chosen.

        Whoever stops listening cancels those that are not done.
        """
        told = dict.fromkeys(works, 0)
        try:
            while not all(work.done for work in works):
                self.step()
                for work in works:
                    new = work.ids[told[work] :]
                    told[work] += len(new)
                    yield from ((work, id_) for id_ in new)
        finally:
            for work in works:
                self.cancel(work)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, int]]:
        """Generate for all requests; yields (request number, new id) as ids are chosen."""
        works = self.submit_all(requests)
        numbers = {work: number for number, work in enumerate(works)}
        return ((numbers[work], id_) for work, id_ in self.follow(works))

    def _fit(self, cache: Cache, before: Sequence[Row], rows: Sequence[Row]) -> None:
        """Give every row its place in the cache, in order, with slots for what it will read."""
        places = {id(row): place for place, row in enumerate(before)}
        wanted = [places.get(id(row), -1) for row in rows]
        if wanted != list(range(len(before))):
            cache.arrange(torch.tensor(wanted, device=self.device))
        # Short rows are padded to the longest: their padding needs slots too, of its own.
        slots = max(row.length for row in rows) + max(len(row.pending) for row in rows)
        cache.grow(-(-slots // SLOTS) * SLOTS)

    def _read(self, rows: Sequence[Row], cache: Cache) -> Tensor:
        """Read every row's pending ids; [R, V] float32 logits behind the last of each."""
        longest = max(len(row.pending) for row in rows)
        ids = torch.full((len(rows), longest), self.vocabulary.pad)
        for place, row in enumerate(rows):
            ids[place, : len(row.pending)] = torch.tensor(row.pending)
        lengths = torch.tensor([row.length for row in rows])
        counts = torch.tensor([len(row.pending) for row in rows])
        # Padding behind a short row goes to the slots after it, which its next ids overwrite.
        positions = lengths[:, None] + torch.arange(longest)
        hidden = self.decoder.hidden(
            ids.to(self.device), positions=positions.to(self.device), cache=cache
        )
        last = hidden[torch.arange(len(rows)), (counts - 1).to(hidden.device)]
        for row in rows:
            row.length += len(row.pending)
            row.pending = []
        # A decoder may have more rows than the vocabulary has ids: spare ones are never chosen.
        return self.decoder.head(last)[:, : self.vocabulary.size].float()

    def _choose(self, live: Sequence[Work], logits: Tensor) -> tuple[list[int], list[float]]:
        """One id for each request, from the logits of all their rows."""
        combined, place = [], 0
        for work in live:
            own = logits[place : place + len(work.rows)]
            place += len(work.rows)
            combined.append(self._combine(work, own))
        scores = torch.stack(combined)  # [R, V]
        rules = [
            work.request.image if work.grammar.expected is Next.CODE else work.request.text
            for work in live
        ]
        ids = draw(
            scores,
            torch.tensor([rule.temperature for rule in rules], device=self.device),
            torch.tensor([rule.top_p for rule in rules], device=self.device),
            chances(
                torch.tensor([work.request.seed for work in live], device=self.device),
                torch.tensor([len(work.ids) for work in live], device=self.device),
            ),
        )
        logprobs = scores.log_softmax(dim=-1).gather(1, ids[:, None]).squeeze(1)
        return ids.tolist(), logprobs.tolist()

    def _combine(self, work: Work, logits: Tensor) -> Tensor:
        """The masked scores of one request, [V], from those of its rows, [1 to 3, V]."""
        expected = work.grammar.expected
        scores = logits[0]
        if work.branches:
            image, none = logits[1], logits[-1]
            rule = work.request.image
            scores = guided(scores, image, none, (rule.text_guidance, rule.image_guidance))
        scores = scores.masked_fill(~self.masks[expected], -torch.inf)
        if expected is not Next.CODE:
            seen = torch.tensor([*work.request.ids, *work.ids], device=self.device).unique()
            scores = penalise(scores, seen, work.request.text.repetition_penalty)
        return scores
