"""State of a request: its KV-cached sequences, its output tokens, and what may come next."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import NamedTuple

from calumma.errors import GenerationError
from calumma.generate.diagonal import DiagonalImage, SampledToken
from calumma.generate.events import FinishReason
from calumma.generate.grammar import Grammar, TokenKind, allowed_ids, image_template, require_capacity_for_image
from calumma.generate.jacobi import JacobiDrafter
from calumma.generate.params import Request
from calumma.generate.sequence_state import Guidance, SequenceState
from calumma.vocabulary import Vocabulary


class KVReservation(NamedTuple):
    """KV-cache slots that each sequence of a request can need; 0 for a sequence that it does not have."""

    num_cond_slots: int
    num_image_cond_slots: int
    num_uncond_slots: int

    @property
    def num_slots(self) -> int:
        """Slots of all sequences."""
        return sum(self)

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return sum(map(bool, self))


@dataclass(eq=False)
class RequestState:
    """A request in the engine."""

    request: Request
    grammar: Grammar

    cond: SequenceState
    """The full context: prompt and output."""

    reservation: KVReservation

    guidance: Guidance | None = None
    """Set while an image is open."""

    drafter: JacobiDrafter | None = None
    num_draft_tokens: int = 0
    """Draft tokens at the ends of the sequences."""

    diagonal: DiagonalImage | None = None
    """Set while an image is open that is generated diagonal by diagonal."""

    num_placeholders: int = 0
    """1 while a placeholder for the token in flight ends the sequences."""

    batch_slot: int = -1
    """Index into the sampler's device tables."""

    output_token_ids: list[int] = field(default_factory=list)

    logprobs: list[float] = field(default_factory=list)
    """One for each output token; 0 for tokens that the grammar forced."""

    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """For each output token the most likely allowed tokens, best first."""

    finish_reason: FinishReason | None = None
    """None until the request is finished."""

    arrival_time: float = field(default_factory=time.perf_counter)

    time_to_first_token: float = 0.0
    """Seconds from arrival to the first output token; 0 if there is none."""

    latency: float = 0.0
    """Seconds from arrival to the end."""

    @classmethod
    def from_request(
        cls, request: Request, vocabulary: Vocabulary, codes_per_image: int, max_model_len: int
    ) -> "RequestState":
        """Create the state of a request; `max_model_len` limits prompt and output together.

        Raises:
            GenerationError: the prompt is empty, too long, or its last image is broken.
        """
        prompt = request.prompt_token_ids
        if not prompt or len(prompt) >= max_model_len:
            raise GenerationError(
                f"the prompt has {len(prompt)} tokens; expected between 1 and {max_model_len - 1}, "
                "the most this model reads. Shorten it, or leave an image out."
            )
        _require_stop_tokens(request, vocabulary)
        grammar = _grammar_after_prompt(request, vocabulary, codes_per_image, max_model_len)
        require_capacity_for_image(grammar)
        reservation = _reserve_kv(request, grammar)
        cond = SequenceState(list(prompt), adapter=request.adapter)
        state = cls(request, grammar, cond, reservation)
        if grammar.num_codes_remaining is not None:
            grammar.image_first = False
            state._open_image()
        if grammar.max_remaining_tokens <= 0:
            state.finish()
        return state

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens will be generated."""
        return self.finish_reason is not None

    @property
    def sequences(self) -> list[SequenceState]:
        """All sequences, the full context first."""
        guidance = self.guidance
        extra = (guidance.image_cond, guidance.uncond) if guidance else ()
        return [self.cond, *(sequence for sequence in extra if sequence is not None)]

    @property
    def guidance_sequences(self) -> tuple[SequenceState, SequenceState, SequenceState]:
        """The sequences cond, image_cond and uncond whose logits guidance combines.

        Missing ones are replaced: without earlier images, image_cond equals uncond; a term of
        weight 0 may be any.
        """
        assert self.guidance is not None
        image_cond, uncond = self.guidance.image_cond, self.guidance.uncond
        uncond = uncond or image_cond or self.cond
        fallback = self.cond if self.guidance.has_earlier_image else uncond
        return self.cond, image_cond or fallback, uncond

    @property
    def next_kind(self) -> TokenKind:
        """Kind of the next token to be sampled, after the placeholder if there is one."""
        predicted = self.grammar.kind_after_next if self.num_placeholders else None
        return self.grammar.next_kind if predicted is None else predicted

    @property
    def excluded_token_ids(self) -> tuple[int, ...]:
        """Allowed tokens that may not be sampled next: they would end the output too early."""
        request, eos = self.request, self.grammar.vocabulary.eos
        if self.next_kind is TokenKind.IMAGE_SIDE:
            (sides,) = allowed_ids(TokenKind.IMAGE_SIDE, self.grammar.vocabulary)
            return tuple(set(sides) - self.grammar.allowed_sides)
        if len(self.output_token_ids) + self.num_placeholders < request.min_tokens:
            return (eos, *request.stop_token_ids)
        return (eos,) if request.ignore_eos else ()

    @property
    def is_speculating(self) -> bool:
        """Whether the next codes are several, which takes tokens that are on the host."""
        is_parallel = self.drafter is not None or self.diagonal is not None
        return is_parallel and bool(self.grammar.num_codes_remaining)

    @property
    def num_parallel_tokens(self) -> int:
        """Uncomputed tokens of each sequence besides the newest: drafts, or others of its diagonal."""
        return self.num_draft_tokens if self.diagonal is None else self.diagonal.num_previous - 1

    @property
    def num_samples(self) -> int:
        """Tokens that a step samples."""
        return self.num_draft_tokens + 1 if self.diagonal is None else len(self.diagonal.cells)

    def sample_position(self, k: int) -> int:
        """Return the number of output tokens before the sample that is followed by k others of its step."""
        start = len(self.output_token_ids) + self.num_placeholders
        if self.diagonal is not None:
            return start + self.diagonal.cells[-1 - k]
        return start + self.num_draft_tokens - k

    def allocate(self, start_slot: int, batch_slot: int) -> None:
        """Set the first of the reserved KV-cache slots, and the batch slot."""
        self.cond.start_slot, self.batch_slot = start_slot, batch_slot
        self._allocate_guidance()

    def append_token(self, id_: int, logprob: float, top_logprobs: dict[int, float] | None = None) -> None:
        """Append an output token; finish where none may follow."""
        self.grammar.accept_token(id_)
        if not self.output_token_ids:
            self.time_to_first_token = time.perf_counter() - self.arrival_time
        self.output_token_ids.append(id_)
        self.logprobs.append(logprob)
        self.top_logprobs.append({} if top_logprobs is None else top_logprobs)
        vocabulary = self.grammar.vocabulary
        if id_ == vocabulary.end_image:
            self.guidance = None
        for sequence in self.sequences:
            sequence.append(id_)
        if id_ == vocabulary.begin_image:
            self._open_image()
        if id_ in self.request.stop_token_ids:
            self.finish("stop")
        elif id_ == vocabulary.eos or self.grammar.max_remaining_tokens <= 0:
            self.finish()

    def append_drafts(self) -> None:
        """Append draft tokens to all sequences, unless more than the newest code is uncomputed."""
        remaining = self.grammar.num_codes_remaining
        is_prefilling = any(sequence.num_uncomputed_tokens > 1 for sequence in self.sequences)
        if self.drafter is None or not remaining or is_prefilling:
            return
        start = len(self.cond.token_ids) - (self.grammar.codes_per_image - remaining)
        codes = self.grammar.vocabulary.codes
        self.drafter.codes_per_side = self.grammar.columns
        image = [id_ for id_ in self.cond.token_ids[start:] if id_ in codes]
        drafts = self.drafter.propose(image, self.grammar.num_codes_before_known)
        self.num_draft_tokens = len(drafts)
        for sequence in self.sequences:
            sequence.token_ids += drafts

    def append_placeholder(self) -> None:
        """Append a placeholder for the token in flight to all sequences.

        So the next step can be scheduled before the token is on the host. No-op if the kind of the
        following token cannot be predicted.
        """
        if self.num_placeholders or self.grammar.kind_after_next is None:
            return
        self.num_placeholders = 1
        for sequence in self.sequences:
            sequence.token_ids.append(~self.batch_slot)

    def accept_samples(self, sampled: Sequence[SampledToken]) -> Sequence[SampledToken]:
        """Return the tokens to append after a step, in order; drafts and placeholders are dropped."""
        if self.diagonal is None:
            return sampled[: self.verify([id_ for id_, _, _ in sampled])]
        codes = self.diagonal.accept(self.sequences, sampled)
        if codes:
            self.diagonal = None
        return codes

    def verify(self, sampled: Sequence[int]) -> int:
        """Drop drafts or placeholder; returns how many of the sampled tokens to append.

        `sampled` are the tokens after the newest known token and after each draft token.
        """
        if self.num_placeholders:
            vocabulary = self.grammar.vocabulary
            is_predicted = sampled[0] not in (vocabulary.eos, vocabulary.begin_image)
            self._rollback(self.num_placeholders, num_accepted=int(is_predicted))
            self.num_placeholders = 0
            return 1
        if len(sampled) == 1 or self.drafter is None:
            return 1
        count = self.drafter.verify(sampled)
        self._rollback(self.num_draft_tokens, num_accepted=count - 1)
        self.num_draft_tokens = 0
        return count

    def _rollback(self, count: int, *, num_accepted: int) -> None:
        for sequence in self.sequences:
            sequence.truncate(len(sequence.token_ids) - count)
            sequence.num_accepted = num_accepted

    def finish(self, reason: FinishReason | None = None) -> None:
        """Finish the request, by default for the reason that its output shows."""
        if reason is None:
            output, grammar = self.output_token_ids, self.grammar
            is_ended = bool(output) and output[-1] == grammar.vocabulary.eos
            is_complete = grammar.images_only and not grammar.max_images
            reason = "stop" if is_ended or is_complete else "length"
        self.finish_reason = reason
        self.guidance = None
        self.latency = time.perf_counter() - self.arrival_time

    def _open_image(self) -> None:
        sampling, vocabulary = self.request.image, self.grammar.vocabulary
        grammar = self.grammar
        is_unbegun = grammar.num_codes_remaining == grammar.codes_per_image and not grammar.template
        is_diagonal = self.request.image_decoding == "diagonal" and is_unbegun and vocabulary.image_sizes is None
        if sampling.num_speculative_tokens and not is_diagonal:
            self.drafter = JacobiDrafter(sampling.num_speculative_tokens, self.grammar.columns)
        self.guidance = Guidance.build(self.cond.token_ids, vocabulary, sampling, self.cond.adapter)
        self._allocate_guidance()
        if is_diagonal:
            self.diagonal = DiagonalImage(grammar.codes_per_image // grammar.columns, grammar.columns, self.sequences)

    def _allocate_guidance(self) -> None:
        start = self.cond.start_slot + self.reservation.num_cond_slots
        if self.guidance and self.guidance.image_cond:
            self.guidance.image_cond.start_slot = start
        if self.guidance and self.guidance.uncond:
            self.guidance.uncond.start_slot = start + self.reservation.num_image_cond_slots


def _grammar_after_prompt(
    request: Request, vocabulary: Vocabulary, codes_per_image: int, max_model_len: int
) -> Grammar:
    prompt = request.prompt_token_ids
    max_new_tokens = min(request.max_new_tokens, max_model_len - len(prompt))
    max_images = 0 if request.modality == "text" else request.max_images
    side, sizes = isqrt(codes_per_image), vocabulary.image_sizes
    grid = request.image_grid or (side, side)
    if vocabulary.image_sizes is None and grid != (side, side):
        raise GenerationError(
            f"image_grid={grid} of a model whose images are {side} x {side} cells; expected None. Leave the size out."
        )
    # An image whose size the model chooses has no template before.
    has_size = sizes is None or request.image_grid is not None or bool(request.known_codes)
    later = image_template(vocabulary, grid) if has_size else ()
    grammar = Grammar(
        vocabulary,
        vocabulary.max_image_tokens(codes_per_image) - 2,
        max_remaining_tokens=max_new_tokens + len(prompt),
        max_images=max_images + prompt.count(vocabulary.begin_image),
    )
    for id_ in prompt:
        grammar.consume(id_)
    grammar.next_template = later
    if sizes is None or grammar.num_codes_remaining is None:
        grammar.template = image_template(vocabulary, grid, request.known_codes) if has_size else ()
        grammar.codes_per_image = grammar.longest_image - 2
    else:
        _continue_open_image(grammar, prompt)
    grammar.images_only = request.modality == "image"
    grammar.image_first = request.image_first or grammar.images_only
    if grammar.images_only and grammar.num_codes_remaining is None:
        grammar.max_leading_text_tokens = request.max_leading_text_tokens
    return grammar


def _continue_open_image(grammar: Grammar, prompt: Sequence[int]) -> None:
    """Set the template of an image of any size that a prompt leaves open."""
    begin = len(prompt) - 1 - prompt[::-1].index(grammar.vocabulary.begin_image)
    tokens = prompt[begin + 1 :]
    if not grammar.template and grammar.next_template:
        grammar.template, grammar.sides = grammar.next_template, ()
        grammar.codes_per_image = len(grammar.template)
        grammar.num_codes_remaining = grammar.codes_per_image - len(tokens)
    codes = grammar.vocabulary.codes
    expected = zip(tokens, grammar.template, strict=False)
    if not all(id_ in codes if known is None else id_ == known for id_, known in expected):
        raise GenerationError(
            "the prompt's last image is open and has other tokens than its size; expected height, width, and a "
            "newline after each row. Leave keep_image_tokens out."
        )


def _reserve_kv(request: Request, grammar: Grammar) -> KVReservation:
    image_len = max(grammar.codes_per_image + 2, grammar.longest_image)
    is_open = grammar.num_codes_remaining is not None
    num_fitting = grammar.max_remaining_tokens // grammar.shortest_image
    num_images = max(0, min(grammar.max_images, num_fitting)) + is_open
    vocabulary, sampling = grammar.vocabulary, request.image
    prompt = request.prompt_token_ids
    has_several = vocabulary.end_image in prompt or num_images > 1
    scales = sampling.guidance_scale, sampling.image_guidance_scale
    num_image_cond = num_uncond = 0
    if num_images and has_several and scales[0] != scales[1]:
        of_prompt = vocabulary.count_modalities(prompt).image_tokens
        num_image_cond = 1 + of_prompt + min(num_images * image_len, grammar.max_remaining_tokens + image_len)
    if num_images and scales != (1.0, 1.0):
        num_uncond = image_len
    num_cond = len(prompt) + max(0, grammar.max_remaining_tokens)
    return KVReservation(num_cond, num_image_cond, num_uncond)


def _require_stop_tokens(request: Request, vocabulary: Vocabulary) -> None:
    for id_ in request.stop_token_ids:
        if not 0 <= id_ < vocabulary.size or vocabulary.is_image_token(id_):
            raise GenerationError(
                f"stop_token_ids has {id_}; expected ids of text or special tokens, below "
                f"{vocabulary.size}: an image is always completed. Leave it out."
            )
    if request.min_tokens and not set(vocabulary.text) - set(request.stop_token_ids):
        raise GenerationError(
            f"stop_token_ids has all {vocabulary.num_text} text tokens, so min_tokens leaves none; "
            "expected fewer. Leave some out."
        )
