"""Logits processor for vLLM: the image grammar, and sampling as this package's engine does it.

Written against `vllm.v1.sample.logits_processor.LogitsProcessor`; from vLLM 0.32 on that interface
belongs to the older of two model runners (`VLLM_USE_V2_MODEL_RUNNER=0`). vLLM itself is not
imported where it is not installed.

Shapes: R requests of a batch, V vocabulary size of the head.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from calumma.checkpoints.model_folder import open_model_folder
from calumma.errors import GenerationError
from calumma.generate.grammar import TokenKind, allowed_ids
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState, SequenceState
from calumma.generate.token_sampler import Sampler, VocabSlices
from calumma.vocabulary import Vocabulary

if TYPE_CHECKING:
    _Base = object
else:
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor as _Base
    except ImportError:
        _Base = object

_UNLIMITED = 2**31
"""Output length of a request without max_tokens."""

_SAMPLING_FIELDS = ("temperature", "top_k", "min_p", "top_p")
_UNGUIDED = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}

GROUP_KEY, ROLE_KEY = "calumma_group", "calumma_role"
"""Extra arguments that `GuidanceScheduler` sets: the id of the request that is guided, in itself and
in the requests that compute its other sequences, and which of the sequences such a request is."""

GuidanceRole = Literal["image_cond", "uncond"]


def vllm_extra_args(request: Request) -> dict[str, Any]:
    """Build the `vllm_xargs` of a request: its grammar, and its sampling parameters as JSON."""
    sampling = {
        "seed": request.seed,
        "text": {name: getattr(request.text, name) for name in (*_SAMPLING_FIELDS, "repetition_penalty")},
        "image": {name: getattr(request.image, name) for name in (*_SAMPLING_FIELDS, *_UNGUIDED)},
        "stop_token_ids": request.stop_token_ids,
        "min_tokens": request.min_tokens,
        "ignore_eos": request.ignore_eos,
    }
    return {
        "calumma_modality": request.modality,
        "calumma_max_images": request.max_images,
        "calumma_image_first": int(request.image_first),
        "calumma_sampling": json.dumps(sampling),
    }


def request_of(params: Any, prompt: Sequence[int]) -> tuple[Request, bool]:
    """Return the request of vLLM's sampling parameters, and whether it is sampled here.

    Raises:
        ValueError: `vllm_xargs` has an invalid value.
        GenerationError: the same.
    """
    extra_args: Mapping[str, Any] = getattr(params, "extra_args", None) or {}
    sampling = json.loads(extra_args.get("calumma_sampling", "{}"))
    if not isinstance(sampling, dict):
        raise ValueError("calumma_sampling is no JSON object; expected one. Fix it.")
    try:
        text = TextSampling(**sampling.get("text", {}))
        image = ImageSampling(**_UNGUIDED | sampling.get("image", {}))
        request = Request(
            prompt_token_ids=tuple(prompt),
            max_new_tokens=params.max_tokens or _UNLIMITED,
            seed=int(sampling.get("seed", 0)),
            text=text,
            image=image,
            modality=extra_args.get("calumma_modality", "any"),
            max_images=int(extra_args.get("calumma_max_images", Request.max_images)),
            image_first=bool(int(extra_args.get("calumma_image_first", 0))),
            stop_token_ids=tuple(sampling.get("stop_token_ids", ())),
            min_tokens=int(sampling.get("min_tokens", 0)),
            ignore_eos=bool(sampling.get("ignore_eos", False)),
        )
    except TypeError as error:
        raise ValueError(f"calumma_sampling is invalid ({error}); expected numbers.") from error
    return request, bool(sampling)


def request_state_of(
    params: Any, prompt: Sequence[int], vocabulary: Vocabulary, codes_per_image: int
) -> tuple[RequestState | None, bool]:
    """Return the state of a request of vLLM, None if it is invalid, and whether it is sampled here."""
    try:
        request, is_sampled = request_of(params, prompt)
        max_model_len = len(prompt) + request.max_new_tokens + 1
        return RequestState.from_request(request, vocabulary, codes_per_image, max_model_len), is_sampled
    except (GenerationError, ValueError):
        # Neither a processor nor a scheduler can reject a request by an exception: it would end the engine.
        return None, False


@dataclass(eq=False)
class BatchRow:
    """A request in vLLM's batch."""

    state: RequestState | None
    """None if the request is invalid: then only end-of-sequence is allowed."""

    output: Sequence[int]
    """vLLM's own list of output tokens, which grows."""

    is_sampled: bool
    """Whether the next token is sampled here, so that vLLM has no choice."""

    slot: int = -1
    """Slot of the sampler's tables; -1 for a request that is not sampled here."""

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


class GrammarLogitsProcessor(_Base):
    """Masks the logits of disallowed tokens, request by request.

    A request gives its grammar in `vllm_xargs`: `calumma_modality` ("any", "text", "image"),
    `calumma_max_images` and `calumma_image_first`. With `calumma_sampling`, as `calumma serve`
    sends it, the token is sampled here and the only one left, so temperature, top-k, min-p and
    top-p of text and of images, the repetition penalty of text, the seed, and with
    `GuidanceScheduler` the guidance scales have the effect that they have in this package's engine.
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

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Read the vocabulary from the model folder that vLLM serves."""
        model = open_model_folder(Path(vllm_config.model_config.model))
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

    def _add(self, index: int, params: Any, prompt: Sequence[int], output: Sequence[int]) -> None:
        extra_args = params.extra_args or {}
        if (role := extra_args.get(ROLE_KEY)) is not None:
            self.rows[index] = BatchRow(None, output, True, group=extra_args[GROUP_KEY], role=role)
            return
        state, is_sampled = request_state_of(params, prompt, self.vocabulary, self.codes_per_image)
        if state is not None and is_guided(state.request) and not self.has_guidance:
            state = None
        row = BatchRow(state, output, is_sampled, group=extra_args.get(GROUP_KEY))
        if state is not None and is_sampled:
            row.slot = state.batch_slot = self._free_slots.pop()
        self.rows[index] = row

    def _remove(self, index: int) -> None:
        row = self.rows.pop(index, None)
        if row is not None:
            self._free(row)

    def _free(self, row: BatchRow) -> None:
        if row.slot >= 0:
            self._free_slots.append(row.slot)

    def apply(self, logits: Tensor) -> Tensor:
        """Set the logits of disallowed tokens to -inf, or of all but the sampled one, in place.

        Args:
            logits: [R, V].
        """
        if not self.rows:
            return logits
        for row in self.rows.values():
            row.update()
        sampled = self._sample(logits)
        indices = sorted(self.rows)
        allowed = torch.zeros(len(indices), logits.shape[1], dtype=torch.bool)
        for number, index in enumerate(indices):
            if index in sampled:
                allowed[number, sampled[index]] = True
                continue
            for ids in allowed_ids(self.rows[index].next_kind, self.vocabulary):
                allowed[number, ids.start : ids.stop] = True
        index_tensor = torch.tensor(indices, device=logits.device)
        masked = logits[index_tensor].masked_fill(~allowed.to(logits.device), -torch.inf)
        logits[index_tensor] = masked
        return logits

    def _sample(self, logits: Tensor) -> dict[int, int]:
        """Sample the next token of each row that is sampled here; returns it by batch index."""
        guidance = {(row.group, row.role): index for index, row in self.rows.items() if row.role is not None}
        # The scheduler discards what is sampled without all sequences: any code will do.
        sampled = dict.fromkeys(guidance.values(), self.vocabulary.codes.start)
        chosen: dict[RequestState, tuple[int, BatchRow]] = {}
        rows: dict[SequenceState, int] = {}
        for index, row in self.rows.items():
            if row.state is None or not row.is_sampled or row.next_kind >= TokenKind.BEGIN_IMAGE:
                continue
            own_rows = {row.state.cond: index}
            for role, sequence in guidance_sequences(row.state).items():
                own_rows[sequence] = guidance.get((row.group, role), -1)
            if -1 in own_rows.values():
                sampled[index] = self.vocabulary.codes.start
                continue
            rows |= own_rows
            chosen[row.state] = (index, row)
            if row.num_sampled_at != len(row.output) - 1:
                # New, or vLLM has dropped a token or forced one: not all seen tokens are marked.
                self.sampler.add_request(row.state)
            row.num_sampled_at = len(row.output)
        if chosen:
            for state, token_ids, *_ in self.sampler.sample(list(chosen), logits, rows).get_output():
                for sequence in (state.cond, *guidance_sequences(state).values()):
                    sampled[rows[sequence]] = token_ids[0]
        return sampled


def is_guided(request: Request) -> bool:
    """Return whether the images of a request have classifier-free guidance."""
    scales = request.image.guidance_scale, request.image.image_guidance_scale
    return request.modality != "text" and bool(request.max_images) and scales != (1.0, 1.0)


def guidance_sequences(state: RequestState) -> dict[GuidanceRole, SequenceState]:
    """Return the sequences besides the full context that the next image code takes."""
    guidance = state.guidance
    if guidance is None or state.next_kind is not TokenKind.IMAGE_CODE:
        return {}
    sequences: dict[GuidanceRole, SequenceState | None] = {
        "image_cond": guidance.image_cond,
        "uncond": guidance.uncond,
    }
    return {role: sequence for role, sequence in sequences.items() if sequence is not None}


def num_blocks_of(state: RequestState, block_size: int) -> int:
    """Return the number of KV-cache blocks that a request can come to need, guidance included."""
    return sum(-(-num_slots // block_size) for num_slots in state.reservation)
