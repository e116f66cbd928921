"""One request on its way: its rows, what it has chosen, what may come next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt

from calumma.errors import GenerationError
from calumma.generate.config import Request
from calumma.generate.grammar import Grammar, Next
from calumma.generate.jacobi import Guesses
from calumma.generate.sample import FinishReason
from calumma.vocabulary import Vocabulary


@dataclass(eq=False)
class Row:
    """A context that is read as it grows."""

    ids: list[int]
    """All of it, read and unread; below 0, `~seat`, an id that the device alone knows."""

    length: int = 0
    """Ids that are in the cache."""

    first: int = -1
    """Its first slot there; -1 before it has any."""

    agreed: int = 0
    """So many of the ids that are added next are in the cache already: they had been guessed."""

    @property
    def pending(self) -> int:
        """Ids that are still to be read."""
        return len(self.ids) - self.length

    def add(self, id_: int) -> None:
        """Put an id behind the others."""
        self.ids.append(id_)
        if self.agreed:
            self.agreed -= 1
            self.length += 1

    def truncate(self, length: int) -> None:
        """Forget the ids behind the first `length`, read or not."""
        del self.ids[length:]
        self.length = min(self.length, length)


@dataclass(frozen=True)
class Extent:
    """The most slots that each row of a request can come to need; 0 where it has no such row."""

    full: int
    images: int
    none: int

    @property
    def slots(self) -> int:
        """Of all rows."""
        return self.full + self.images + self.none

    @property
    def rows(self) -> int:
        """How many rows."""
        return 1 + bool(self.images) + bool(self.none)


@dataclass(eq=False)
class Work:
    """One request on its way."""

    request: Request
    grammar: Grammar

    full: Row
    """The whole context."""

    extent: Extent

    images: Row | None = None
    """While an image is drawn: the images of the context alone, for guidance. None where the
    scales ask for no such row, or there are no images before."""

    none: Row | None = None
    """While an image is drawn: the open image alone, for guidance, where the scales ask for it."""

    _several: bool = False
    """Whether the context has an image before the open one."""

    guesses: Guesses | None = None
    """While an image is drawn: of its next codes, where the request wants any."""

    ahead: int = 0
    """Guesses that stand at the ends of the rows."""

    supposed: int = 0
    """1 while there stands, behind these, an id that is still being drawn and known to the device
    alone: it is supposed to be of the kind that `Grammar.foreseen` builds upon."""

    seat: int = -1
    """Its place in the tables that the device keeps of running requests."""

    ids: list[int] = field(default_factory=list)
    """The new ids."""

    logprobs: list[float] = field(default_factory=list)
    """One for each new id; 0 where it was the only one allowed."""

    done: bool = False
    cancelled: bool = False

    submitted: float = field(default_factory=time.perf_counter)
    first_token: float = 0.0
    """Seconds from `submitted` to the first new id; 0 where there is none."""

    total: float = 0.0
    """Seconds from `submitted` to the end."""

    @property
    def rows(self) -> list[Row]:
        """All rows of the request, the whole context first."""
        return [row for row in (self.full, self.images, self.none) if row is not None]

    @property
    def expected(self) -> Next:
        """The kind of id that is drawn next, behind what is supposed."""
        foreseen = self.grammar.foreseen if self.supposed else None
        return self.grammar.expected if foreseen is None else foreseen

    @property
    def speculates(self) -> bool:
        """Whether the codes that come next are guessed: from ids that the host must know."""
        return self.guesses is not None and bool(self.grammar.codes_owed)

    def take(self, id_: int, logprob: float) -> None:
        """Take in an id that was chosen, and end where nothing may follow."""
        self.grammar.advance(id_)
        if not self.ids:
            self.first_token = time.perf_counter() - self.submitted
        self.ids.append(id_)
        self.logprobs.append(logprob)
        vocabulary = self.grammar.vocabulary
        if id_ == vocabulary.end_image:
            self.images = self.none = None
        for row in self.rows:
            row.add(id_)
        if id_ == vocabulary.begin_image:
            self.open_image()
        if id_ == vocabulary.eos or self.grammar.room <= 0:
            self.end()

    def guess(self) -> None:
        """Put guesses behind the newest code of the open image, to be read with it.

        Not while more than that code is unread: they must not be read before it.
        """
        owed = self.grammar.codes_owed
        if self.guesses is None or not owed or any(row.pending > 1 for row in self.rows):
            return
        drawn = self.grammar.codes_per_image - owed
        guessed = self.guesses.ahead(self.full.ids[len(self.full.ids) - drawn :], owed)
        self.ahead = len(guessed)
        for row in self.rows:
            row.ids += guessed

    def suppose(self) -> None:
        """Put the id that is being drawn behind all rows, where it can be foreseen what follows."""
        if self.supposed or self.grammar.foreseen is None:
            return
        self.supposed = 1
        for row in self.rows:
            row.ids.append(~self.seat)

    def settle(self, drawn: Sequence[int]) -> int:
        """Take back what was guessed or supposed; how many ids of those drawn are to be taken.

        Args:
            drawn: what was drawn behind the newest id that the host knew and, of a code, behind
                each guess.
        """
        if self.supposed:
            vocabulary = self.grammar.vocabulary
            right = drawn[0] not in (vocabulary.eos, vocabulary.begin_image)
            self._take_back(self.supposed, agreed=int(right))
            self.supposed = 0
            return 1
        if len(drawn) == 1 or self.guesses is None:
            return 1
        stand = self.guesses.settle(drawn)
        self._take_back(self.ahead, agreed=stand - 1)
        self.ahead = 0
        return stand

    def _take_back(self, count: int, *, agreed: int) -> None:
        """Forget the last ids of all rows; so many of them are going to be added again."""
        for row in self.rows:
            row.truncate(len(row.ids) - count)
            row.agreed = agreed

    def place(self, first: int, seat: int) -> None:
        """Give it its slots, from `first` on, and its seat."""
        self.full.first, self.seat = first, seat
        self._place_guidance()

    def open_image(self) -> None:
        """Begin the guidance rows of the image that is open at the end of the context."""
        vocabulary, rule = self.grammar.vocabulary, self.request.image
        if rule.speculate:
            side = isqrt(self.grammar.codes_per_image)
            self.guesses = Guesses(rule.speculate, side)
        images = [id_ for id_ in self.full.ids if id_ == vocabulary.bos or _drawn(id_, vocabulary)]
        begun = len(images) - 1 - images[::-1].index(vocabulary.begin_image)
        self._several = several = vocabulary.end_image in images
        if several and rule.text_guidance != rule.image_guidance:
            self.images = Row(images)
        if (rule.image_guidance if several else rule.text_guidance) != 1.0:
            self.none = Row([vocabulary.bos, *images[begun:]])
        self._place_guidance()

    def _place_guidance(self) -> None:
        if self.images is not None:
            self.images.first = self.full.first + self.extent.full
        if self.none is not None:
            self.none.first = self.full.first + self.extent.full + self.extent.images

    @property
    def guides(self) -> tuple[Row, Row, Row]:
        """The rows whose logits guidance mixes: full, images, none.

        Where one has no weight of its own, another stands for it: without images before, the
        images' row is that of nothing; and what the scales cancel may be any.
        """
        none = self.none or self.images or self.full
        return self.full, self.images or (self.full if self._several else none), none

    def end(self, *, cancelled: bool = False) -> None:
        """Nothing more will come."""
        self.done, self.cancelled = True, cancelled
        self.images = self.none = None
        self.total = time.perf_counter() - self.submitted

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        if self.cancelled:
            return "cancelled"
        stopped = bool(self.ids) and self.ids[-1] == self.grammar.vocabulary.eos
        sated = self.grammar.images_only and not self.grammar.max_images
        return "stop" if stopped or sated else "length"


def _drawn(id_: int, vocabulary: Vocabulary) -> bool:
    return id_ in vocabulary.codes or id_ in (vocabulary.begin_image, vocabulary.end_image)


def work_of(request: Request, vocabulary: Vocabulary, codes_per_image: int, longest: int) -> Work:
    """The work that a request is, with its prompt read by the grammar.

    Args:
        request: what is asked.
        vocabulary: of the model.
        codes_per_image: of the image tokenizer.
        longest: ids that the model reads at most.

    Raises:
        GenerationError: the prompt is empty, too long, or its last image is broken.
    """
    if not request.ids or len(request.ids) >= longest:
        raise GenerationError(
            f"the prompt has {len(request.ids)} ids; expected between 1 and {longest - 1}, the "
            "most this model reads. Shorten it, or leave an image out."
        )
    room = min(request.max_new_tokens, longest - len(request.ids))
    images = 0 if request.modality == "text" else request.max_images
    grammar = Grammar(
        vocabulary,
        codes_per_image,
        room=room + len(request.ids),
        max_images=images + request.ids.count(vocabulary.begin_image),
    )
    for id_ in request.ids:
        grammar.read(id_)
    grammar.images_only = request.modality == "image"
    grammar.image_first = request.image_first or grammar.images_only
    _require_whole_image(grammar)
    full = Row(list(request.ids))
    work = Work(request=request, grammar=grammar, full=full, extent=_extent(request, grammar))
    if grammar.codes_owed is not None:
        grammar.image_first = False
        work.open_image()
    if grammar.room <= 0:
        work.end()
    return work


def _extent(request: Request, grammar: Grammar) -> Extent:
    """The most that a request can come to need, when its prompt has been read."""
    whole = grammar.codes_per_image + 2
    opened = grammar.codes_owed is not None
    to_come = max(0, min(grammar.max_images, grammar.room // whole)) + opened
    vocabulary, rule = grammar.vocabulary, request.image
    several = vocabulary.end_image in request.ids or to_come > 1
    scales = rule.text_guidance, rule.image_guidance
    images = none = 0
    if to_come and several and scales[0] != scales[1]:
        of_prompt = sum(_drawn(id_, vocabulary) for id_ in request.ids)
        images = 1 + of_prompt + to_come * whole
    if to_come and scales != (1.0, 1.0):
        none = whole
    return Extent(full=len(request.ids) + max(0, grammar.room), images=images, none=none)


def _require_whole_image(grammar: Grammar) -> None:
    owed = grammar.codes_owed
    if owed is None:
        if grammar.images_only and grammar.room < grammar.codes_per_image + 2:
            raise GenerationError(
                f"an image needs {grammar.codes_per_image + 2} ids, but there is room for "
                f"{max(grammar.room, 0)}; expected room for the whole image. Raise max_new_tokens, "
                "or shorten the prompt."
            )
        return
    if owed < 0:
        raise GenerationError(
            f"the prompt's last image is open with {grammar.codes_per_image - owed} codes; expected "
            f"at most {grammar.codes_per_image}, as this model draws them. Leave codes out."
        )
    if grammar.room <= owed:
        raise GenerationError(
            f"an open image still needs {owed + 1} ids, but max_new_tokens leaves {grammar.room}; "
            "expected room for the whole image. Raise max_new_tokens."
        )
