"""Chooses the next id of many requests at once, from what their rows have read.

Those that want text and those that want codes are two groups: each costs its own columns of the
head, a few operations over all its rows, and no loop over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calumma.generate.columns import VocabSlices
from calumma.generate.grammar import TokenKind
from calumma.generate.request import RequestState, SequenceState
from calumma.generate.sampling_ops import (
    SamplingTensors,
    apply_cfg,
    apply_repetition_penalty,
    sample_tokens,
    uniform_from_seed,
)
from calumma.generate.step_output import SampledGroup, SampleSlots, StepOutput, to_device_async
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

RowIndex = Mapping[SequenceState, int]
"""Where what a row has read last stands in [N, M]."""


class Sampler:
    """Knows of every running request, by its seat, what it drew last and which text it has seen.

    Nothing here looks at what is on the device.
    """

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, seats: int) -> None:
        self.vocab_slices = VocabSlices(decoder, vocabulary)
        self.device = decoder.embedding.weight.device
        self._first_code = vocabulary.codes.start
        self.last_token_ids = torch.zeros(seats, dtype=torch.int64, device=self.device)
        """[seats] int64, the id that was drawn last at each seat."""

        # One column more than there are, for ids that are no text.
        shape = seats, len(self.vocab_slices.text_token_ids) + 1
        self._seen = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def add_request(self, work: RequestState) -> None:
        """Take in a request that has got a seat."""
        self._seen[work.batch_slot] = False
        self.mark_seen(work, work.cond.token_ids)

    def mark_seen(self, work: RequestState, ids: Sequence[int]) -> None:
        """Take in ids that a request has without having chosen them here."""
        columns = self.vocab_slices.token_to_column[self._tensor(ids)]
        self._seen[work.batch_slot, columns] = True

    def sample(self, works: Sequence[RequestState], hidden: Tensor, places: RowIndex) -> StepOutput:
        """Draw one id for each work, and one for each of its guesses.

        Args:
            works: those whose rows are read to their ends.
            hidden: [N, M], what the head reads.
            places: where each row's last stands in it.
        """
        drawing = [work for work in works if work.next_kind is TokenKind.IMAGE_CODE]
        writing = [work for work in works if work.next_kind is not TokenKind.IMAGE_CODE]
        groups: list[SampledGroup] = []
        if drawing:
            groups.append(self._sample_codes(drawing, hidden, places))
        if writing:
            groups.append(self._sample_text(writing, hidden, places))
        return StepOutput(groups)

    def _sample_codes(
        self, works: Sequence[RequestState], hidden: Tensor, places: RowIndex
    ) -> SampledGroup:
        draws = [
            (work, behind) for work in works for behind in range(work.num_draft_tokens, -1, -1)
        ]
        rows = list(dict.fromkeys((row, n) for work, n in draws for row in work.guidance_sequences))
        logits = self.vocab_slices.image_logits(
            hidden[self._tensor([places[row] - n for row, n in rows])]
        )
        own = {row: number for number, row in enumerate(rows)}
        scores = logits
        if len(rows) > len(draws):
            guides = self._tensor(
                [[own[row, n] for row in work.guidance_sequences] for work, n in draws]
            )
            rules = [work.request.image for work, _ in draws]
            scales = [(rule.guidance_scale, rule.image_guidance_scale) for rule in rules]
            full, images, none = (logits[place] for place in guides.unbind(1))
            scores = apply_cfg(full, images, none, self._tensor(scales))
        limits = SamplingTensors.build([work.request.image for work, _ in draws], self.device)
        columns = sample_tokens(scores, limits, self._uniform(draws))
        ids = columns + self._first_code
        self.last_token_ids[self._tensor([work.batch_slot for work, _ in draws])] = ids
        return draws, ids, _logprobs(scores, columns)

    def _sample_text(
        self, works: Sequence[RequestState], hidden: Tensor, places: RowIndex
    ) -> SampledGroup:
        scores = self.vocab_slices.text_logits(
            hidden[self._tensor([places[w.cond] for w in works])]
        )
        kinds = self._tensor([work.next_kind for work in works])
        scores = scores.masked_fill(self.vocab_slices.disallowed[kinds], -torch.inf)
        seats = self._tensor([work.batch_slot for work in works])
        penalties = [work.request.text.repetition_penalty for work in works]
        if any(penalty != 1 for penalty in penalties):
            seen = self._seen[seats, :-1]
            scores = apply_repetition_penalty(scores, seen, self._tensor(penalties))
        limits = SamplingTensors.build([work.request.text for work in works], self.device)
        draws = [(work, 0) for work in works]
        columns = sample_tokens(scores, limits, self._uniform(draws))
        ids, logprobs = self.vocab_slices.text_token_ids[columns], _logprobs(scores, columns)
        if any(work.num_placeholders for work in works):
            # What is drawn behind an id that was supposed to be text and is none, nobody will see.
            supposed = self._tensor([bool(work.num_placeholders) for work in works])
            astray = supposed & torch.isin(
                self.last_token_ids[seats], self.vocab_slices.special_token_ids
            )
            columns = columns.masked_fill(astray, len(self.vocab_slices.text_token_ids))
        self._seen[seats, columns] = True
        self.last_token_ids[seats] = ids
        return draws, ids, logprobs

    def _uniform(self, draws: SampleSlots) -> Tensor:
        seeds = self._tensor([work.request.seed for work, _ in draws])
        places = [
            len(work.output_token_ids) + work.num_placeholders + work.num_draft_tokens - n
            for work, n in draws
        ]
        return uniform_from_seed(seeds, self._tensor(places))

    def _tensor(self, numbers: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        return to_device_async(torch.tensor(numbers), self.device)


def _logprobs(scores: Tensor, columns: Tensor) -> Tensor:
    """[R] natural logarithms of the probability of each row's column."""
    chosen = scores.gather(1, columns.unsqueeze(-1)).squeeze(-1)
    return chosen - scores.logsumexp(dim=-1)
