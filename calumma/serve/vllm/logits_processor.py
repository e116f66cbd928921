"""Logits processor for vLLM: the image grammar, and sampling as this package's engine does it.

vLLM 0.32 has two model runners, each with an interface of its own for logits processors
(`VLLM_USE_V2_MODEL_RUNNER`); one class implements both. vLLM itself is not imported where it is not
installed.

Shapes: R requests of a batch, V vocabulary size of the head.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calumma.errors import GenerationError
from calumma.generate.grammar import TokenKind, allowed_ids
from calumma.generate.request import RequestState
from calumma.generate.sequence_state import SequenceState
from calumma.generate.token_sampler import Sampler, VocabSlices
from calumma.serve.vllm.extra_args import (
    GROUP_KEY,
    ROLE_KEY,
    GuidanceRole,
    guidance_sequences,
    is_guided,
    request_of,
    request_state_of,
)
from calumma.serve.vllm.plugin import open_served_model


class _V1:
    """Interface of the first runner, where vLLM is not installed."""


class _V2:
    """Interface of the second runner, where vLLM is not installed."""


if not TYPE_CHECKING:
    with contextlib.suppress(ImportError):
        from vllm.v1.sample.logits_processor import LogitsProcessor as _V1
        from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as _V2


@dataclass(eq=False)
class BatchRow:
    """A request in vLLM's batch."""

    state: RequestState | None
    """None if the request is invalid: then only end-of-sequence is allowed."""

    output: list[int]
    """Output tokens; vLLM's own list in the first runner."""

    is_sampled: bool
    """Whether the next token is sampled here, so that vLLM has no choice."""

    slot: int = -1
    """Slot of the sampler's tables; -1 for a request that is not sampled here."""

    num_prompt_tokens: int = 0

    num_sampled_at: int = -2
    """Length of the output when a token was last sampled for it; -2 before the first."""

    group: str | None = None
    """Id of the request whose guidance this is, or that is guided itself."""

    role: GuidanceRole | None = None
    """Which of its sequences this is; None is the request itself."""

    def update(self) -> None:
        """Append the new output tokens to the state."""
        state = self.state
        for id_ in [] if state is None else self.output[len(state.output_token_ids) :]:
            if state is None or state.is_finished or not state.grammar.allows(id_):
                # Continued after its end, or generated without this grammar: stop.
                self.state = None
                return
            state.append_token(id_, 0.0)

    @property
    def next_kind(self) -> TokenKind:
        """Kind of the next token."""
        if self.role is not None:
            return TokenKind.IMAGE_CODE
        if self.state is None or self.state.is_finished:
            return TokenKind.EOS
        return self.state.grammar.next_kind


class GrammarLogitsProcessor(_V1, _V2):
    """Masks the logits of disallowed tokens, request by request.

    A request gives its grammar in `vllm_xargs`: `calumma_modality` ("any", "text", "image"),
    `calumma_max_images` and `calumma_image_first`. With `calumma_sampling`, as `calumma serve`
    sends it, the token is sampled here and becomes the most likely one, so temperature, top-k,
    min-p and top-p of text and of images, the repetition penalty of text, the seed, and with
    `GuidanceScheduler` the guidance scales have the effect that they have in this package's engine.

    vLLM's first runner calls `update_state` with the changes of its batch, the second one
    `add_request` and `apply_staged_writes`.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Check the parameters of a request, which vLLM otherwise rejects with status 400.

        Raises:
            ValueError: `vllm_xargs` has an invalid value, or vLLM would sample a second time.
        """
        if {GROUP_KEY, ROLE_KEY} & set(sampling_params.extra_args or {}):
            raise ValueError(f"{GROUP_KEY} and {ROLE_KEY} are set by the scheduler; expected neither. Leave them out.")
        try:
            _, is_sampled = request_of(sampling_params, ())
        except GenerationError as error:
            raise ValueError(str(error)) from error
        penalties = (
            sampling_params.repetition_penalty,
            sampling_params.presence_penalty + 1,
            sampling_params.frequency_penalty + 1,
        )
        if is_sampled and (sampling_params.temperature or any(p != 1 for p in penalties)):
            raise ValueError(
                "calumma_sampling is set, and so is a temperature or penalty of vLLM's own; "
                "expected temperature 0 and no penalty. Leave one of them out."
            )

    def __init__(self, vllm_config: Any, runner: Any, is_pin_memory: bool = False) -> None:
        """Read the vocabulary from the model folder that vLLM serves.

        Args:
            vllm_config: vLLM's.
            runner: the device of the first runner, or the tables of the second one's requests.
            is_pin_memory: of the first runner.
        """
        device = runner if isinstance(runner, torch.device) else runner.device
        self._tables: Any = None if runner is device else runner
        self._new: dict[int, Any] = {}
        model = open_served_model(vllm_config.model_config)
        self.vocabulary = model.text_tokenizer.vocabulary
        self.codes_per_image = model.vq_config.codes_per_image
        num_slots = vllm_config.scheduler_config.max_num_seqs
        self.sampler = Sampler(VocabSlices(self.vocabulary, device), num_slots)
        self._free_slots = list(range(num_slots))
        self.rows: dict[int, BatchRow] = {}
        self.has_guidance = "GuidanceScheduler" in str(vllm_config.scheduler_config.scheduler_cls)
        """Whether the scheduler adds the sequences that guidance needs."""

    def is_argmax_invariant(self) -> bool:
        """Return False: the most likely token may be masked."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests are removed, added and moved, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._remove(index)
        for index, params, prompt, output in batch_update.added:
            self._remove(index)
            self._add(index, params, prompt or (), output)
        for source, target, direction in batch_update.moved:
            moved, other = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if other is not None and direction.name == "SWAP":
                self.rows[source] = other
            elif other is not None:
                self._free(other)

    def _add(self, index: int, params: Any, prompt: Sequence[int], output: list[int]) -> None:
        row = self.rows[index] = self._new_row(params, prompt, output)
        if row.state is not None and row.is_sampled:
            row.slot = row.state.batch_slot = self._free_slots.pop()

    def _new_row(self, params: Any, prompt: Sequence[int], output: list[int]) -> BatchRow:
        extra_args = params.extra_args or {}
        if (role := extra_args.get(ROLE_KEY)) is not None:
            return BatchRow(None, output, True, group=extra_args[GROUP_KEY], role=role)
        state, is_sampled = request_state_of(params, prompt, self.vocabulary, self.codes_per_image)
        if state is not None and is_guided(state.request) and not self.has_guidance:
            state = None
        return BatchRow(state, output, is_sampled, group=extra_args.get(GROUP_KEY))

    def _remove(self, index: int) -> None:
        row = self.rows.pop(index, None)
        if row is not None:
            self._free(row)

    def _free(self, row: BatchRow) -> None:
        if row.slot >= 0:
            self._free_slots.append(row.slot)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take a request, new or resumed, in a slot of the second runner's tables."""
        self._new[req_idx] = sampling_params
        return True

    def apply_staged_writes(self) -> None:
        """Read the tokens of the new requests, which are in the tables by now."""
        for slot, params in self._new.items():
            num_prompt_tokens = int(self._tables.prompt_len.np[slot])
            num_tokens = int(self._tables.prefill_len.np[slot])
            token_ids = self._tables.all_token_ids.gpu[slot, :num_tokens].tolist()
            row = self._new_row(params, token_ids[:num_prompt_tokens], token_ids[num_prompt_tokens:])
            row.num_prompt_tokens = num_prompt_tokens
            if row.state is not None:
                row.state.batch_slot = slot
            self.rows[slot] = row
        self._new.clear()

    def _rows_of_step(self, context: Any) -> dict[int, BatchRow]:
        """Return the rows of the second runner's batch, with the token that each computes now."""
        rows = {}
        slots, positions = context.idx_mapping_np.tolist(), context.pos.tolist()
        for index, (slot, position, id_) in enumerate(zip(slots, positions, context.input_ids.tolist(), strict=True)):
            row = self.rows.get(slot)
            if row is not None:
                rows[index] = row
                if position == row.num_prompt_tokens + len(row.output):
                    row.output.append(id_)
        return rows

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Set the logits of disallowed tokens to -inf, in place.

        Where the token is sampled here, those of the tokens are their log probabilities after
        guidance, grammar and penalty, as many as the request returns, and the negative one of the
        sampled token, which is thus the greatest; -inf those of all others.

        Args:
            logits: [R, V].
            context: of the second runner.
        """
        rows = self.rows if context is None else self._rows_of_step(context)
        if not rows:
            return logits
        for row in rows.values():
            row.update()
        values = self._sample(logits, rows)
        allowed = torch.zeros(len(rows), logits.shape[1], dtype=torch.bool)
        for number, (index, row) in enumerate(rows.items()):
            for ids in [] if index in values else allowed_ids(row.next_kind, self.vocabulary):
                allowed[number, ids.start : ids.stop] = True
            if index not in values and row.is_sampled and row.state is not None:
                values[index] = {id_: 0.0 for ids in allowed_ids(row.next_kind, self.vocabulary) for id_ in ids}
        device = logits.device
        indices = torch.tensor(list(rows), device=device)
        logits[indices] = logits[indices].masked_fill(~allowed.to(device), -torch.inf)
        entries = [(index, id_, value) for index, row_values in values.items() for id_, value in row_values.items()]
        if entries:
            row_indices, token_ids, numbers = zip(*entries, strict=True)
            entry_rows, entry_columns = torch.tensor([row_indices, token_ids], device=device)
            logits[entry_rows, entry_columns] = torch.tensor(numbers, dtype=logits.dtype, device=device)
        return logits

    def _sample(self, logits: Tensor, rows: Mapping[int, BatchRow]) -> dict[int, dict[int, float]]:
        """Sample the next token of each row that is sampled here; returns its logits by batch index."""
        guidance = {(row.group, row.role): index for index, row in rows.items() if row.role is not None}
        # The scheduler discards what is sampled without all sequences: any code will do.
        any_code = {self.vocabulary.codes.start: 0.0}
        sampled = dict.fromkeys(guidance.values(), any_code)
        chosen: dict[RequestState, tuple[int, BatchRow]] = {}
        sequence_rows: dict[SequenceState, int] = {}
        for index, row in rows.items():
            if row.state is None or not row.is_sampled or row.next_kind >= TokenKind.BEGIN_IMAGE:
                continue
            own_rows = {row.state.cond: index}
            for role, sequence in guidance_sequences(row.state).items():
                own_rows[sequence] = guidance.get((row.group, role), -1)
            if -1 in own_rows.values():
                sampled[index] = any_code
                continue
            sequence_rows |= own_rows
            chosen[row.state] = (index, row)
            if row.num_sampled_at != len(row.output) - 1:
                # New, or vLLM has dropped a token or forced one: not all seen tokens are marked.
                self.sampler.add_request(row.state)
            row.num_sampled_at = len(row.output)
        if chosen:
            for state, token_ids, logprobs, tops in self.sampler.sample(
                list(chosen), logits, sequence_rows
            ).get_output():
                for sequence in (state.cond, *guidance_sequences(state).values()):
                    sampled[sequence_rows[sequence]] = {**tops[0], token_ids[0]: -logprobs[0]}
        return sampled
