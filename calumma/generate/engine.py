"""Many requests at once through one decoder, each in its own state.

Every request has one row of the cache for its whole context. While it draws an image with
guidance it has one or two more, for the prompt's images alone and for no prompt; they are read
in once when the image begins, fed the same codes, and dropped when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calumma.errors import GenerationError
from calumma.generate.config import Request
from calumma.generate.grammar import Grammar, Next
from calumma.generate.sampling import draw, guided, masks, penalise
from calumma.model.cache import Cache
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

SLOTS = 64
"""The cache grows by this many slots at a time."""


@dataclass
class Row:
    """One row of the cache: a context that is read as it grows."""

    length: int
    """Ids in the cache."""

    pending: list[int]
    """Ids not yet in the cache."""


@dataclass
class Work:
    """One request on its way."""

    request: Request
    grammar: Grammar
    chance: np.random.Generator
    full: Row
    branches: list[Row] = field(default_factory=list)
    """Guidance rows of the open image: its images alone (where there are any), and nothing."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    first_token: float = 0.0
    done: bool = False

    @property
    def rows(self) -> list[Row]:
        """All rows of the request, the whole context first."""
        return [self.full, *self.branches]


class Engine:
    """Runs requests to their ends."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self.device = decoder.embedding.weight.device
        self.masks = masks(vocabulary, self.device)

    def work(self, request: Request) -> Work:
        """Take in a request.

        Raises:
            GenerationError: the prompt is empty, too long, or its last image is broken.
        """
        longest = self.decoder.config.max_tokens
        if not request.ids or len(request.ids) >= longest:
            raise GenerationError(
                f"the prompt has {len(request.ids)} ids; wanted between 1 and {longest - 1}, the "
                "most this model reads. Shorten it, or leave an image out."
            )
        room = min(request.max_new_tokens, longest - len(request.ids))
        grammar = Grammar(
            self.vocabulary,
            self.codes_per_image,
            room=room + len(request.ids),
            max_images=request.max_images + request.ids.count(self.vocabulary.begin_image),
        )
        for id_ in request.ids:
            grammar.read(id_)
        grammar.image_first = request.image_first and grammar.codes_owed is None
        if grammar.codes_owed is not None and grammar.codes_owed < 0:
            raise GenerationError(
                f"the prompt's last image is open with {self.codes_per_image - grammar.codes_owed} "
                f"codes; wanted at most {self.codes_per_image}, as this model draws them. Leave "
                "codes out."
            )
        if grammar.codes_owed is not None and grammar.room <= grammar.codes_owed:
            raise GenerationError(
                f"an open image still needs {grammar.codes_owed + 1} ids, but max_new_tokens "
                f"leaves {grammar.room}; wanted room for the whole image. Raise max_new_tokens."
            )
        made = Work(
            request=request,
            grammar=grammar,
            chance=np.random.default_rng(request.seed),
            full=Row(0, list(request.ids)),
        )
        if grammar.codes_owed is not None:
            made.branches = self._branches(made)
        return made

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, int]]:
        """Generate for all requests; yields (request number, new id) as ids are chosen.

        The finished works stand in `self.finished` when the iterator ends.
        """
        works = [self.work(request) for request in requests]
        self.finished = works
        started = time.perf_counter()
        live = [number for number, work in enumerate(works) if work.grammar.room > 0]
        cache = Cache(self.decoder.config, 0, SLOTS, self.decoder.embedding.weight)
        in_cache: list[Row] = []
        while live:
            rows = [row for number in live for row in works[number].rows]
            self._fit(cache, in_cache, rows)
            in_cache = rows
            logits = self._read(rows, cache)
            chosen, logprobs = self._choose([works[number] for number in live], logits)
            for number, id_, logprob in zip(live, chosen, logprobs, strict=True):
                work = works[number]
                self._take(work, id_, logprob)
                work.first_token = work.first_token or time.perf_counter() - started
                yield number, id_
            live = [number for number in live if not works[number].done]

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
            torch.tensor([work.chance.random() for work in live], device=self.device),
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
        if expected in (Next.TEXT, Next.TEXT_OR_IMAGE):
            seen = torch.tensor([*work.request.ids, *work.ids], device=self.device).unique()
            scores = penalise(scores, seen, work.request.text.repetition_penalty)
        return scores

    def _take(self, work: Work, id_: int, logprob: float) -> None:
        """Take in the chosen id; begin or end guidance; close a full image without the model."""
        vocabulary = self.vocabulary
        work.grammar.advance(id_)
        work.ids.append(id_)
        work.logprobs.append(logprob)
        for row in work.rows:
            row.pending.append(id_)
        if id_ == vocabulary.begin_image:
            work.branches = self._branches(work)
        elif id_ == vocabulary.end_image:
            work.branches = []
        elif work.grammar.expected is Next.END:
            work.grammar.advance(vocabulary.end_image)
            work.ids.append(vocabulary.end_image)
            work.logprobs.append(0.0)
            work.full.pending.append(vocabulary.end_image)
            work.branches = []
        work.done = id_ == vocabulary.eos or work.grammar.room <= 0

    def _branches(self, work: Work) -> list[Row]:
        """The guidance rows of the image that has just begun."""
        rule = work.request.image
        if rule.text_guidance == 1.0 and rule.image_guidance == 1.0:
            return []
        vocabulary = self.vocabulary
        context = [*work.request.ids, *work.ids]
        kept = {vocabulary.bos, vocabulary.begin_image, vocabulary.end_image}
        images = [id_ for id_ in context if id_ in kept or id_ in vocabulary.codes]
        begun = len(images) - 1 - images[::-1].index(vocabulary.begin_image)
        none = [vocabulary.bos, *images[begun:]]
        if vocabulary.end_image not in images:
            return [Row(0, none)]
        return [Row(0, images), Row(0, none)]
