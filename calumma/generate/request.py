"""One request on its way: its rows, what it has chosen, what may come next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt

from calumma.errors import GenerationError
from calumma.generate.events import FinishReason
from calumma.generate.grammar import Grammar, TokenKind
from calumma.generate.jacobi import JacobiDrafter
from calumma.generate.params import Request
from calumma.vocabulary import Vocabulary


@dataclass(eq=False)
class SequenceState:
    """A context that is read as it grows."""

    token_ids: list[int]
    """All of it, read and unread; below 0, `~seat`, an id that the device alone knows."""

    num_computed_tokens: int = 0
    """Ids that are in the cache."""

    start_slot: int = -1
    """Its first slot there; -1 before it has any."""

    num_accepted: int = 0
    """So many of the ids that are added next are in the cache already: they had been guessed."""

    @property
    def num_uncomputed_tokens(self) -> int:
        """Ids that are still to be read."""
        return len(self.token_ids) - self.num_computed_tokens

    def append(self, id_: int) -> None:
        """Put an id behind the others."""
        self.token_ids.append(id_)
        if self.num_accepted:
            self.num_accepted -= 1
            self.num_computed_tokens += 1

    def truncate(self, length: int) -> None:
        """Forget the ids behind the first `length`, read or not."""
        del self.token_ids[length:]
        self.num_computed_tokens = min(self.num_computed_tokens, length)


@dataclass(frozen=True)
class KVReservation:
    """The most slots that each row of a request can come to need; 0 where it has no such row."""

    num_cond_slots: int
    num_image_cond_slots: int
    num_uncond_slots: int

    @property
    def num_slots(self) -> int:
        """Of all rows."""
        return self.num_cond_slots + self.num_image_cond_slots + self.num_uncond_slots

    @property
    def num_sequences(self) -> int:
        """How many rows."""
        return 1 + bool(self.num_image_cond_slots) + bool(self.num_uncond_slots)


@dataclass(eq=False)
class RequestState:
    """One request on its way."""

    request: Request
    grammar: Grammar

    cond: SequenceState
    """The whole context."""

    reservation: KVReservation

    image_cond: SequenceState | None = None
    """While an image is drawn: the images of the context alone, for guidance. None where the
    scales ask for no such row, or there are no images before."""

    uncond: SequenceState | None = None
    """While an image is drawn: the open image alone, for guidance, where the scales ask for it."""

    _has_earlier_image: bool = False
    """Whether the context has an image before the open one."""

    drafter: JacobiDrafter | None = None
    """While an image is drawn: of its next codes, where the request wants any."""

    num_draft_tokens: int = 0
    """Guesses that stand at the ends of the rows."""

    num_placeholders: int = 0
    """1 while there stands, behind these, an id that is still being drawn and known to the device
    alone: it is supposed to be of the kind that `Grammar.foreseen` builds upon."""

    batch_slot: int = -1
    """Its place in the tables that the device keeps of running requests."""

    output_token_ids: list[int] = field(default_factory=list)
    """The new ids."""

    logprobs: list[float] = field(default_factory=list)
    """One for each new id; 0 where it was the only one allowed."""

    is_finished: bool = False
    is_aborted: bool = False

    arrival_time: float = field(default_factory=time.perf_counter)
    time_to_first_token: float = 0.0
    """Seconds from `submitted` to the first new id; 0 where there is none."""

    latency: float = 0.0
    """Seconds from `submitted` to the end."""

    @property
    def sequences(self) -> list[SequenceState]:
        """All rows of the request, the whole context first."""
        return [row for row in (self.cond, self.image_cond, self.uncond) if row is not None]

    @property
    def next_kind(self) -> TokenKind:
        """The kind of id that is drawn next, behind what is supposed."""
        foreseen = self.grammar.kind_after_next if self.num_placeholders else None
        return self.grammar.next_kind if foreseen is None else foreseen

    @property
    def is_speculating(self) -> bool:
        """Whether the codes that come next are guessed: from ids that the host must know."""
        return self.drafter is not None and bool(self.grammar.num_codes_remaining)

    def append_token(self, id_: int, logprob: float) -> None:
        """Take in an id that was chosen, and end where nothing may follow."""
        self.grammar.accept_token(id_)
        if not self.output_token_ids:
            self.time_to_first_token = time.perf_counter() - self.arrival_time
        self.output_token_ids.append(id_)
        self.logprobs.append(logprob)
        vocabulary = self.grammar.vocabulary
        if id_ == vocabulary.end_image:
            self.image_cond = self.uncond = None
        for row in self.sequences:
            row.append(id_)
        if id_ == vocabulary.begin_image:
            self.open_image()
        if id_ == vocabulary.eos or self.grammar.max_remaining_tokens <= 0:
            self.finish()

    def append_drafts(self) -> None:
        """Put guesses behind the newest code of the open image, to be read with it.

        Not while more than that code is unread: they must not be read before it.
        """
        owed = self.grammar.num_codes_remaining
        if (
            self.drafter is None
            or not owed
            or any(row.num_uncomputed_tokens > 1 for row in self.sequences)
        ):
            return
        drawn = self.grammar.codes_per_image - owed
        guessed = self.drafter.propose(
            self.cond.token_ids[len(self.cond.token_ids) - drawn :], owed
        )
        self.num_draft_tokens = len(guessed)
        for row in self.sequences:
            row.token_ids += guessed

    def append_placeholder(self) -> None:
        """Put the id that is being drawn behind all rows, where it can be foreseen what follows."""
        if self.num_placeholders or self.grammar.kind_after_next is None:
            return
        self.num_placeholders = 1
        for row in self.sequences:
            row.token_ids.append(~self.batch_slot)

    def verify(self, drawn: Sequence[int]) -> int:
        """Take back what was guessed or supposed; how many ids of those drawn are to be taken.

        Args:
            drawn: what was drawn behind the newest id that the host knew and, of a code, behind
                each guess.
        """
        if self.num_placeholders:
            vocabulary = self.grammar.vocabulary
            right = drawn[0] not in (vocabulary.eos, vocabulary.begin_image)
            self._rollback(self.num_placeholders, agreed=int(right))
            self.num_placeholders = 0
            return 1
        if len(drawn) == 1 or self.drafter is None:
            return 1
        stand = self.drafter.verify(drawn)
        self._rollback(self.num_draft_tokens, agreed=stand - 1)
        self.num_draft_tokens = 0
        return stand

    def _rollback(self, count: int, *, agreed: int) -> None:
        """Forget the last ids of all rows; so many of them are going to be added again."""
        for row in self.sequences:
            row.truncate(len(row.token_ids) - count)
            row.num_accepted = agreed

    def allocate(self, first: int, seat: int) -> None:
        """Give it its slots, from `first` on, and its seat."""
        self.cond.start_slot, self.batch_slot = first, seat
        self._allocate_guidance()

    def open_image(self) -> None:
        """Begin the guidance rows of the image that is open at the end of the context."""
        vocabulary, rule = self.grammar.vocabulary, self.request.image
        if rule.num_speculative_tokens:
            side = isqrt(self.grammar.codes_per_image)
            self.drafter = JacobiDrafter(rule.num_speculative_tokens, side)
        images = [
            id_ for id_ in self.cond.token_ids if id_ == vocabulary.bos or _drawn(id_, vocabulary)
        ]
        begun = len(images) - 1 - images[::-1].index(vocabulary.begin_image)
        self._has_earlier_image = several = vocabulary.end_image in images
        if several and rule.guidance_scale != rule.image_guidance_scale:
            self.image_cond = SequenceState(images)
        if (rule.image_guidance_scale if several else rule.guidance_scale) != 1.0:
            self.uncond = SequenceState([vocabulary.bos, *images[begun:]])
        self._allocate_guidance()

    def _allocate_guidance(self) -> None:
        if self.image_cond is not None:
            self.image_cond.start_slot = self.cond.start_slot + self.reservation.num_cond_slots
        if self.uncond is not None:
            self.uncond.start_slot = (
                self.cond.start_slot
                + self.reservation.num_cond_slots
                + self.reservation.num_image_cond_slots
            )

    @property
    def guidance_sequences(self) -> tuple[SequenceState, SequenceState, SequenceState]:
        """The rows whose logits guidance mixes: full, images, none.

        Where one has no weight of its own, another stands for it: without images before, the
        images' row is that of nothing; and what the scales cancel may be any.
        """
        none = self.uncond or self.image_cond or self.cond
        return self.cond, self.image_cond or (self.cond if self._has_earlier_image else none), none

    def finish(self, *, cancelled: bool = False) -> None:
        """Nothing more will come."""
        self.is_finished, self.is_aborted = True, cancelled
        self.image_cond = self.uncond = None
        self.latency = time.perf_counter() - self.arrival_time

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        if self.is_aborted:
            return "cancelled"
        stopped = (
            bool(self.output_token_ids) and self.output_token_ids[-1] == self.grammar.vocabulary.eos
        )
        sated = self.grammar.images_only and not self.grammar.max_images
        return "stop" if stopped or sated else "length"


def _drawn(id_: int, vocabulary: Vocabulary) -> bool:
    return id_ in vocabulary.codes or id_ in (vocabulary.begin_image, vocabulary.end_image)


def build_request_state(
    request: Request, vocabulary: Vocabulary, codes_per_image: int, max_model_len: int
) -> RequestState:
    """The work that a request is, with its prompt read by the grammar.

    Args:
        request: what is asked.
        vocabulary: of the model.
        codes_per_image: of the image tokenizer.
        longest: ids that the model reads at most.

    Raises:
        GenerationError: the prompt is empty, too long, or its last image is broken.
    """
    if not request.prompt_token_ids or len(request.prompt_token_ids) >= max_model_len:
        raise GenerationError(
            f"the prompt has {len(request.prompt_token_ids)} ids; expected between 1 and {max_model_len - 1}, the "
            "most this model reads. Shorten it, or leave an image out."
        )
    room = min(request.max_new_tokens, max_model_len - len(request.prompt_token_ids))
    images = 0 if request.modality == "text" else request.max_images
    grammar = Grammar(
        vocabulary,
        codes_per_image,
        max_remaining_tokens=room + len(request.prompt_token_ids),
        max_images=images + request.prompt_token_ids.count(vocabulary.begin_image),
    )
    for id_ in request.prompt_token_ids:
        grammar.consume(id_)
    grammar.images_only = request.modality == "image"
    grammar.image_first = request.image_first or grammar.images_only
    _require_capacity_for_image(grammar)
    full = SequenceState(list(request.prompt_token_ids))
    work = RequestState(
        request=request, grammar=grammar, cond=full, reservation=_reserve_kv(request, grammar)
    )
    if grammar.num_codes_remaining is not None:
        grammar.image_first = False
        work.open_image()
    if grammar.max_remaining_tokens <= 0:
        work.finish()
    return work


def _reserve_kv(request: Request, grammar: Grammar) -> KVReservation:
    """The most that a request can come to need, when its prompt has been read."""
    whole = grammar.codes_per_image + 2
    opened = grammar.num_codes_remaining is not None
    to_come = max(0, min(grammar.max_images, grammar.max_remaining_tokens // whole)) + opened
    vocabulary, rule = grammar.vocabulary, request.image
    several = vocabulary.end_image in request.prompt_token_ids or to_come > 1
    scales = rule.guidance_scale, rule.image_guidance_scale
    images = none = 0
    if to_come and several and scales[0] != scales[1]:
        of_prompt = sum(_drawn(id_, vocabulary) for id_ in request.prompt_token_ids)
        images = 1 + of_prompt + to_come * whole
    if to_come and scales != (1.0, 1.0):
        none = whole
    return KVReservation(
        num_cond_slots=len(request.prompt_token_ids) + max(0, grammar.max_remaining_tokens),
        num_image_cond_slots=images,
        num_uncond_slots=none,
    )


def _require_capacity_for_image(grammar: Grammar) -> None:
    owed = grammar.num_codes_remaining
    if owed is None:
        if grammar.images_only and grammar.max_remaining_tokens < grammar.codes_per_image + 2:
            raise GenerationError(
                f"an image needs {grammar.codes_per_image + 2} ids, but there is room for "
                f"{max(grammar.max_remaining_tokens, 0)}; expected room for the whole image. Raise max_new_tokens, "
                "or shorten the prompt."
            )
        return
    if owed < 0:
        raise GenerationError(
            f"the prompt's last image is open with {grammar.codes_per_image - owed} codes; expected "
            f"at most {grammar.codes_per_image}, as this model draws them. Leave codes out."
        )
    if grammar.max_remaining_tokens <= owed:
        raise GenerationError(
            f"an open image still needs {owed + 1} ids, but max_new_tokens leaves {grammar.max_remaining_tokens}; "
            "expected room for the whole image. Raise max_new_tokens."
        )
