"""Scheduler for vLLM that runs the sequences of classifier-free guidance as one group.

While an image is open, a guided request (its full context) has up to two companions: requests that
vLLM's client never sees, for the images of the context and for the open image alone. The logits
processor combines the logits of the group and samples one token for all of it. Here the group is
admitted and preempted as one, and a token counts only if all members sampled it in the same step:
otherwise it is discarded, and the last token computed again. So no token is ever unguided.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request as VLLMRequest
from vllm.v1.request import RequestStatus

from calumma.errors import ConfigError
from calumma.generate.request import RequestState
from calumma.serve.vllm.extra_args import (
    GROUP_KEY,
    ROLE_KEY,
    guidance_sequences,
    is_guided,
    num_blocks_of,
    request_state_of,
)
from calumma.serve.vllm.plugin import open_served_model, require_vllm

_LOGGER = logging.getLogger(__name__)

_COMPANION_PREFIX = "calumma-guidance:"
"""Prefix of the ids of companions, which no client has."""


@dataclass(eq=False)
class GuidanceGroup:
    """A guided request and its companions."""

    request: VLLMRequest
    state: RequestState
    """The request as this package's engine would have it."""

    companions: list[VLLMRequest] = field(default_factory=list)
    num_images: int = 0

    @property
    def members(self) -> list[VLLMRequest]:
        """The request and its unfinished companions."""
        return [self.request, *(one for one in self.companions if not one.is_finished())]

    @property
    def is_split(self) -> bool:
        """Whether some members run while others wait."""
        return len({one.status == RequestStatus.RUNNING for one in self.members}) == 2


class GuidanceScheduler(Scheduler):
    """vLLM's scheduler with guidance groups; requests without guidance are scheduled as by it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Read the vocabulary from the model folder that vLLM serves.

        Raises:
            ConfigError: vLLM is not a tested version, or has settings that cannot be combined.
        """
        super().__init__(*args, **options)
        require_vllm()
        _require_supported_settings(self)
        model = open_served_model(self.vllm_config.model_config)
        self._vocabulary = model.text_tokenizer.vocabulary
        self._codes_per_image = model.vq_config.codes_per_image
        self._groups: dict[str, GuidanceGroup] = {}
        self._is_admission_closed = False
        self._unguided: list[VLLMRequest] = []
        self.num_discarded_tokens = 0
        """Tokens that were sampled before all members of a group were ready."""

    def add_request(self, request: VLLMRequest) -> None:
        """Add a request; a guided one becomes a group."""
        is_new = request.request_id not in self.requests
        super().add_request(request)
        params = request.sampling_params
        if not is_new or params is None or request.prompt_token_ids is None:
            return
        prompt = request.prompt_token_ids
        state, is_sampled = request_state_of(params, prompt, self._vocabulary, self._codes_per_image)
        if state is None or not is_sampled or not is_guided(state.request):
            return
        if self._rejects(request, state):
            return
        request.sampling_params = params.clone()
        request.sampling_params.extra_args = {**(params.extra_args or {}), GROUP_KEY: request.request_id}
        group = self._groups[request.request_id] = GuidanceGroup(request, state)
        self._add_companions(group)

    def _rejects(self, request: VLLMRequest, state: RequestState) -> bool:
        """Return whether a group can never be scheduled; vLLM then fails its request."""
        found, capacity = num_blocks_of(state, self.block_size), self._num_usable_blocks
        num_sequences = state.reservation.num_sequences
        if found <= capacity and num_sequences <= self._max_num_running:
            return False
        _LOGGER.error(
            "request %s needs %d blocks of the KV cache and %d sequences, guidance included; expected at most %d and "
            "%d. Lower max_tokens, or raise the cache or max_num_seqs.",
            *(request.request_id, found, num_sequences, capacity, self._max_num_running),
        )
        self.grammar_compile_error_reqs.add(request.request_id)
        return True

    @property
    def _num_usable_blocks(self) -> int:
        """Blocks of the KV cache without the one that vLLM reserves and its watermark."""
        manager = self.kv_cache_manager
        return int(manager.block_pool.num_gpu_blocks - 1 - manager.watermark_blocks)

    @property
    def _max_num_running(self) -> int:
        return int(min(self.max_num_running_reqs, self.max_num_active_reqs))

    def _add_companions(self, group: GuidanceGroup) -> None:
        """Add the companions of an image that was just opened."""
        request, state = group.request, group.state
        sequences = guidance_sequences(state)
        if not sequences:
            group.companions = []
        if not sequences or group.companions:
            return
        group.num_images += 1
        for role, sequence in sequences.items():
            params = SamplingParams(
                max_tokens=state.grammar.num_codes_remaining,
                temperature=0.0,
                ignore_eos=True,
                detokenize=False,
                extra_args={GROUP_KEY: request.request_id, ROLE_KEY: role},
            )
            companion = VLLMRequest(
                request_id=f"{_COMPANION_PREFIX}{group.num_images}:{role}:{request.request_id}",
                prompt_token_ids=list(sequence.token_ids),
                sampling_params=params,
                pooling_params=None,
                client_index=request.client_index,
                arrival_time=request.arrival_time,
                lora_request=request.lora_request,
                cache_salt=request.cache_salt,
                block_hasher=request._block_hasher,
            )
            group.companions.append(companion)
            super().add_request(companion)

    def schedule(self, *args: Any, **options: Any) -> SchedulerOutput:
        """Schedule a step, with the members of a group next to each other."""
        self._is_admission_closed = False
        self._preempt([one for one in self._unguided if one.status == RequestStatus.RUNNING])
        self._unguided.clear()
        if self._groups:
            self.running.sort(key=self._order)
            split = [group for group in self._groups.values() if group.is_split]
            for group in sorted(split, key=lambda group: self._order(group.request))[:1]:
                self._preempt_for(group)
            waiting = sorted(self.waiting, key=self._order)
            if waiting != list(self.waiting):
                self.waiting.clear()
                self.waiting.extend(waiting)
        return super().schedule(*args, **options)

    def _group_of(self, request: VLLMRequest) -> GuidanceGroup | None:
        params = request.sampling_params
        return self._groups.get((params.extra_args or {}).get(GROUP_KEY, "")) if params else None

    def _order(self, request: VLLMRequest) -> tuple[float, str, str]:
        """Return the place of a request: first come, first served, and a group as one."""
        group = self._group_of(request)
        first = request if group is None else group.request
        return first.arrival_time, first.request_id, "" if first is request else request.request_id

    def _fits(self, group: GuidanceGroup) -> bool:
        """Return whether the waiting members of a group can be admitted."""
        manager = self.kv_cache_manager
        needed = sum(
            -(-(one.num_tokens + 1) // self.block_size) - -(-one.num_computed_tokens // self.block_size)
            for one in group.members
        )
        num_waiting = sum(one.status != RequestStatus.RUNNING for one in group.members)
        has_blocks = needed + manager.watermark_blocks <= manager.block_pool.get_num_free_blocks()
        return bool(has_blocks) and len(self.running) + num_waiting <= self._max_num_running

    def _preempt_for(self, group: GuidanceGroup) -> None:
        """Preempt later requests until a split group fits, or the group itself."""
        while group.is_split and not self._fits(group):
            last = self.running[-1]
            last_group = self._group_of(last)
            members = [last] if last_group is None else last_group.members
            if self._order(last) < self._order(group.request):
                # Only earlier requests are left: the group waits for them as a whole.
                members = group.members
            self._preempt([member for member in members if member.status == RequestStatus.RUNNING])

    def _preempt(self, requests: Iterable[VLLMRequest]) -> None:
        for request in requests:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _handle_blocked_waiting_request(self, request: VLLMRequest) -> bool:
        """Return whether a request may be admitted: a group as a whole, and none before it."""
        is_rejected = request.request_id in self.grammar_compile_error_reqs
        if self._is_admission_closed or is_rejected or not super()._handle_blocked_waiting_request(request):
            return False
        group = self._group_of(request)
        if group is None or not self.running or self._fits(group):
            return True
        self._is_admission_closed = True
        return False

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process the tokens of a step; those of companions are for no client."""
        for group in self._groups.values():
            self._discard_unguided(group, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._remove_finished_groups()
        for client_outputs in outputs.values():
            client_outputs.outputs = [one for one in client_outputs.outputs if not _is_companion(one.request_id)]
            finished = client_outputs.finished_requests or set()
            client_outputs.finished_requests = {id_ for id_ in finished if not _is_companion(id_)} or None
        return outputs

    def _discard_unguided(self, group: GuidanceGroup, output: ModelRunnerOutput) -> None:
        """Discard the tokens of a group of which not all members sampled one."""
        members = group.members
        indices = [output.req_id_to_index.get(one.request_id, -1) for one in members]
        has_token = [index >= 0 and len(output.sampled_token_ids[index]) > 0 for index in indices]
        if all(has_token) or not any(has_token):
            return
        for member, index, is_sampled in zip(members, indices, has_token, strict=True):
            if is_sampled:
                output.sampled_token_ids[index] = []
                self.num_discarded_tokens += 1
                if self.use_v2_model_runner:
                    # Its own tables have the token: it forgets a request that is preempted.
                    self._unguided.append(member)
                else:
                    member.num_computed_tokens -= 1

    def _update_request_with_output(
        self, request: VLLMRequest, new_token_ids: list[int], *args: Any, **options: Any
    ) -> tuple[list[int], bool]:
        """Append the tokens of a step; begin-of-image of a guided request adds companions."""
        new_token_ids, is_stopped = super()._update_request_with_output(request, new_token_ids, *args, **options)
        group = self._groups.get(request.request_id)
        if group is not None:
            state = group.state
            for id_ in new_token_ids:
                if not state.is_finished and state.grammar.allows(id_):
                    state.append_token(id_, 0.0)
            if not is_stopped:
                self._add_companions(group)
        return new_token_ids, is_stopped

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[VLLMRequest]:
        """Finish requests from outside, such as aborted ones, with their companions."""
        finished = super().finish_requests(request_ids, finished_status)
        self._remove_finished_groups()
        return [request for request in finished if not _is_companion(request.request_id)]

    def _remove_finished_groups(self) -> None:
        for request_id, group in list(self._groups.items()):
            if group.request.is_finished():
                del self._groups[request_id]
                companions = [one.request_id for one in group.companions]
                super().finish_requests(companions, RequestStatus.FINISHED_ABORTED)


def _is_companion(request_id: str) -> bool:
    return request_id.startswith(_COMPANION_PREFIX)


def _require_supported_settings(scheduler: Scheduler) -> None:
    """Check that one step is in flight at a time, and that requests come first, are served first.

    Raises:
        ConfigError: a setting of vLLM excludes it.
    """
    config = scheduler.vllm_config
    settings = {
        "speculative decoding, which would sample several tokens of a group": bool(scheduler.num_spec_tokens),
        "asynchronous scheduling": bool(scheduler.scheduler_config.async_scheduling),
        "pipeline parallelism": scheduler.use_pp,
        "sampling that is sharded over ranks": bool(config.parallel_config.enable_batch_sharded_sampling),
        f"the policy {scheduler.policy.value}": scheduler.policy.value != "fcfs",
        "a KV connector": scheduler.connector is not None,
    }
    for name, is_on in settings.items():
        if is_on:
            raise ConfigError(
                f"GuidanceScheduler with {name}; expected one token of each request per step. Start vLLM with "
                "--no-async-scheduling, and without that setting."
            )
