"""Sampler: the next token of many requests at once, from the hidden states of their sequences.

Requests whose next token is an image code and those whose next token is text are two groups: each
computes only its own slice of the logits, and a few operations over all its rows.

Shapes: N computed tokens, M model_dim, V vocabulary size, C text columns, R batch rows.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.generate.grammar import TokenKind, allowed_ids
from calumma.generate.request import RequestState
from calumma.generate.sampling_ops import (
    SamplingTensors,
    apply_cfg,
    apply_repetition_penalty,
    sample_tokens,
    uniform_from_seed,
)
from calumma.generate.sequence_state import SequenceState
from calumma.generate.step_output import SampledGroup, SampleSlots, StepOutput
from calumma.model.decoder import Decoder
from calumma.model.downward_head import DownwardHead
from calumma.model.kv_cache import to_device_async
from calumma.model.lora import AdapterBatch
from calumma.vocabulary import Vocabulary

RowIndex = Mapping[SequenceState, int]
"""Row of each sequence's last computed token in the hidden states, [N, M]."""

TEXT_KINDS = (
    TokenKind.TEXT,
    TokenKind.TEXT_OR_IMAGE,
    TokenKind.IMAGE_OR_EOS,
    TokenKind.IMAGE_SIDE,
    TokenKind.TEXT_BEFORE_IMAGE,
)
"""Kinds that are sampled from the text columns; their values index `VocabSlices.disallowed`."""


class VocabSlices:
    """Logits of the tokens that may come next and of no others, from the logits of all tokens.

    Text columns are end-of-sequence, begin-of-image, the sides of images of any size, then the text
    tokens.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self.vocabulary, self.device = vocabulary, device
        self.downward_head: DownwardHead | None = None
        """Head of a model that generates images diagonal by diagonal."""

        self._text, self._codes, self._eos = vocabulary.text, vocabulary.codes, vocabulary.eos
        special = [vocabulary.eos, vocabulary.begin_image]
        self.special_token_ids = torch.tensor(special, device=device)
        """[2] int64: end-of-sequence and begin-of-image, after which no text is sampled."""

        sizes = vocabulary.image_sizes
        self._sides = range(0) if sizes is None else sizes.sides
        self._first_columns = torch.tensor([*special, *self._sides], device=device)
        self.text_token_ids = torch.tensor([*special, *self._sides, *vocabulary.text], device=device)
        """[C] int64, the token id of each text column."""

        num_columns = len(self.text_token_ids)
        self.token_to_column = torch.full((vocabulary.size,), num_columns, device=device)
        """[V] int64, the text column of each token id; C where it has none."""

        self.token_to_column[self.text_token_ids] = torch.arange(num_columns, device=device)
        allowed = torch.zeros(len(TEXT_KINDS), vocabulary.size, dtype=torch.bool, device=device)
        for kind in TEXT_KINDS:
            for ids in allowed_ids(kind, vocabulary):
                allowed[kind, ids.start : ids.stop] = True
        self.disallowed = ~allowed[:, self.text_token_ids]
        """[5, C] bool, for each of `TEXT_KINDS`: True where the grammar does not allow a column."""

    def text_column(self, id_: int) -> int | None:
        """Return the text column of a token, or None if it has none."""
        if id_ in self._text:
            return len(self._first_columns) + id_ - self._text.start
        if id_ in self._sides:
            return len(self.special_token_ids) + id_ - self._sides.start
        return 0 if id_ == self._eos else None

    def seen_text(self, seen: Tensor) -> Tensor:
        """Return [R, C] seen columns without the sides of images, which may repeat."""
        if self._sides:
            seen = seen.clone()
            seen[:, len(self.special_token_ids) : len(self._first_columns)] = False
        return seen

    def text_logits(self, logits: Tensor, adapters: Sequence[str] = ()) -> Tensor:
        """Select the logits of the text columns: [N, V] to [N, C] float32.

        `adapters` are the names of each row's adapter.
        """
        return logits[:, self.text_token_ids].float()

    def image_logits(self, logits: Tensor, adapters: Sequence[str] = ()) -> Tensor:
        """Select the logits of the image codes: [N, V] to [N, codes] float32."""
        return logits[:, self._codes.start : self._codes.stop].float()


class HeadSlices(VocabSlices):
    """The same from hidden states: the head computes no other logits."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, adapters: AdapterBatch | None = None) -> None:
        super().__init__(vocabulary, decoder.embedding.weight.device)
        self._head, self._adapters, self.downward_head = decoder.head, adapters, decoder.downward_head

    def text_logits(self, hidden: Tensor, adapters: Sequence[str] = ()) -> Tensor:
        """Compute the logits of the text columns: [N, M] to [N, C] float32."""
        special = F.linear(hidden, self._head.weight[self._first_columns])
        text = F.linear(hidden, self._head.weight[self._text.start : self._text.stop])
        logits = torch.cat([special, text], dim=-1).float()
        return self._replace(hidden, logits, adapters, self.text_token_ids)

    def image_logits(self, hidden: Tensor, adapters: Sequence[str] = ()) -> Tensor:
        """Compute the logits of the image codes: [N, M] to [N, codes] float32."""
        logits = F.linear(hidden, self._head.weight[self._codes.start : self._codes.stop]).float()
        return self._replace(hidden, logits, adapters, None)

    def _replace(self, hidden: Tensor, logits: Tensor, adapters: Sequence[str], token_ids: Tensor | None) -> Tensor:
        """Replace logits of adapters with rows of the head; columns are of `token_ids`, or codes."""
        if self._adapters is None or not self._adapters.adapters.keys() & set(adapters):
            return logits
        if token_ids is None:
            token_ids = torch.arange(self._codes.start, self._codes.stop, device=self.device)
        self._adapters.select([(name, 1) for name in adapters])
        return self._adapters.replace_logits(hidden, logits, token_ids)


class Sampler:
    """Samples the next token of every running request, without waiting for the device.

    It keeps two device tables indexed by batch slot: the last sampled token, and the text tokens
    seen so far for the repetition penalty.
    """

    def __init__(self, vocab_slices: VocabSlices, num_batch_slots: int) -> None:
        self.vocab_slices, self.device = vocab_slices, vocab_slices.device
        self._first_code = vocab_slices.vocabulary.codes.start
        self.last_token_ids = torch.zeros(num_batch_slots, dtype=torch.int64, device=self.device)
        """[batch slots] int64, the last token sampled in each batch slot."""

        # One column more than there are, for tokens that are no text.
        shape = num_batch_slots, len(self.vocab_slices.text_token_ids) + 1
        self._seen = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def add_request(self, state: RequestState) -> None:
        """Reset the tables of the request's batch slot."""
        self._seen[state.batch_slot] = False
        self.mark_seen(state, state.cond.token_ids)

    def mark_seen(self, state: RequestState, token_ids: Sequence[int]) -> None:
        """Record tokens of a request that were not sampled here."""
        columns = self.vocab_slices.token_to_column[self._tensor(token_ids)]
        self._seen[state.batch_slot, columns] = True

    def sample(self, states: Sequence[RequestState], hidden: Tensor, rows: RowIndex) -> StepOutput:
        """Sample one token for each request, and one after each of its draft tokens.

        Args:
            states: requests all of whose tokens are computed.
            hidden: [N, M], input of the head, or whatever `vocab_slices` selects logits from.
            rows: of each sequence's last token in it.
        """
        image = [state for state in states if state.next_kind is TokenKind.IMAGE_CODE]
        text = [state for state in states if state.next_kind is not TokenKind.IMAGE_CODE]
        groups: list[SampledGroup] = []
        if image:
            groups.append(self._sample_image(image, hidden, rows))
        if text:
            groups.append(self._sample_text(text, hidden, rows))
        return StepOutput(groups)

    def _sample_image(self, states: Sequence[RequestState], hidden: Tensor, rows: RowIndex) -> SampledGroup:
        slots = [(state, k) for state in states for k in range(state.num_samples - 1, -1, -1)]
        positions = {(seq, k): state for state, k in slots for seq in state.guidance_sequences}
        inputs = self._image_inputs(positions, hidden, rows)
        logits = self.vocab_slices.image_logits(inputs, [sequence.adapter for sequence, _ in positions])
        params = [state.request.image for state, _ in slots]
        if len(positions) > len(slots):
            index_of = {position: index for index, position in enumerate(positions)}
            guidance = self._tensor([[index_of[seq, k] for seq in state.guidance_sequences] for state, k in slots])
            scales = [(row.guidance_scale, row.image_guidance_scale) for row in params]
            cond, image_cond, uncond = (logits[index] for index in guidance.unbind(1))
            logits = apply_cfg(cond, image_cond, uncond, self._tensor(scales))
        tensors = SamplingTensors.build(params, self.device)
        columns = sample_tokens(logits, tensors, self._uniform(slots))
        token_ids = columns + self._first_code
        self.last_token_ids[self._tensor([state.batch_slot for state, _ in slots])] = token_ids
        top_logprobs, top = _top_logprobs(logits, [state for state, _ in slots])
        top_ids = None if top is None else top + self._first_code
        return SampledGroup(slots, token_ids, _logprobs(logits, columns), top_ids, top_logprobs)

    def _image_inputs(
        self, positions: Mapping[tuple[SequenceState, int], RequestState], hidden: Tensor, rows: RowIndex
    ) -> Tensor:
        """Return [N, M], the head's input for the sample of each sequence that k others follow."""
        neighbors = {state: state.diagonal.neighbors() for state in positions.values() if state.diagonal is not None}
        pairs = [neighbors[state][-1 - k] if state in neighbors else (k, None) for (_, k), state in positions.items()]
        last = [rows[sequence] for sequence, _ in positions]
        left = hidden[self._tensor([row - (cell or 0) for row, (cell, _) in zip(last, pairs, strict=True)])]
        head = self.vocab_slices.downward_head
        if not neighbors or head is None:
            return left
        above = hidden[self._tensor([row - (cell or 0) for row, (_, cell) in zip(last, pairs, strict=True)])]
        has_left, has_above = self._tensor([[cell is not None for cell in pair] for pair in pairs]).unbind(1)
        is_diagonal = self._tensor([state in neighbors for state in positions.values()])
        return torch.where(is_diagonal.unsqueeze(-1), head(left, above, has_left, has_above), left)

    def _sample_text(self, states: Sequence[RequestState], hidden: Tensor, rows: RowIndex) -> SampledGroup:
        slices = self.vocab_slices
        indices = self._tensor([rows[state.cond] for state in states])
        logits = slices.text_logits(hidden[indices], [state.cond.adapter for state in states])
        kinds = self._tensor([state.next_kind for state in states])
        logits = logits.masked_fill(slices.disallowed[kinds], -torch.inf)
        excluded = [
            (row, column)
            for row, state in enumerate(states)
            for id_ in state.excluded_token_ids
            if (column := slices.text_column(id_)) is not None
        ]
        if excluded:
            logits[self._tensor(excluded).unbind(1)] = -torch.inf
        batch_slots = self._tensor([state.batch_slot for state in states])
        penalties = [state.request.text.repetition_penalty for state in states]
        if any(penalty != 1 for penalty in penalties):
            seen = slices.seen_text(self._seen[batch_slots, :-1])
            logits = apply_repetition_penalty(logits, seen, self._tensor(penalties))
        tensors = SamplingTensors.build([state.request.text for state in states], self.device)
        slots = [(state, 0) for state in states]
        columns = sample_tokens(logits, tensors, self._uniform(slots))
        token_ids, logprobs = slices.text_token_ids[columns], _logprobs(logits, columns)
        if any(state.num_placeholders for state in states):
            # Mispredicted rows: the sample is discarded, so it must not count as seen.
            predicted = self._tensor([bool(state.num_placeholders) for state in states])
            previous = self.last_token_ids[batch_slots]
            mispredicted = predicted & torch.isin(previous, slices.special_token_ids)
            columns = columns.masked_fill(mispredicted, len(slices.text_token_ids))
        self._seen[batch_slots, columns] = True
        self.last_token_ids[batch_slots] = token_ids
        top_logprobs, top = _top_logprobs(logits, states)
        top_ids = None if top is None else slices.text_token_ids[top]
        return SampledGroup(slots, token_ids, logprobs, top_ids, top_logprobs)

    def _uniform(self, slots: SampleSlots) -> Tensor:
        seeds = self._tensor([state.request.seed for state, _ in slots])
        return uniform_from_seed(seeds, self._tensor([state.sample_position(k) for state, k in slots]))

    def _tensor(self, numbers: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        return to_device_async(torch.tensor(numbers), self.device)


def _logprobs(logits: Tensor, columns: Tensor) -> Tensor:
    """Compute [R] natural logarithms of the probability of each row's column."""
    sampled = logits.gather(1, columns.unsqueeze(-1)).squeeze(-1)
    return sampled - logits.logsumexp(dim=-1)


def _top_logprobs(logits: Tensor, states: Sequence[RequestState]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Compute the [R, K] greatest log probabilities and their columns, if any request asks."""
    count = min(max(state.request.num_logprobs for state in states), logits.shape[-1])
    if not count:
        return None, None
    values, columns = logits.topk(count, dim=-1)
    return values - logits.logsumexp(dim=-1, keepdim=True), columns
