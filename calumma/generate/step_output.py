"""Asynchronous copies between host and device: inputs of a step, and the tokens it sampled.

With async scheduling a step is launched before the host knows the tokens of the previous one, so a
GPU does not wait while the host schedules; placeholders take the place of those tokens. No copy on the way
may wait for the device, which takes pinned memory on a GPU. Each copy has pinned memory of its own:
torch reuses it only when the copies from and to it are done.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calumma.generate.request import RequestState

SampleSlots = Sequence[tuple[RequestState, int]]
"""(request, k) pairs: sample at the position that is followed by k draft tokens."""


class SampledGroup(NamedTuple):
    """Tokens sampled on the device for some requests."""

    slots: SampleSlots

    token_ids: Tensor
    """[R] int64."""

    logprobs: Tensor
    """[R] float32, natural logarithms."""

    top_token_ids: Tensor | None = None
    """[R, K] int64, the most likely allowed tokens, if any request returns them."""

    top_logprobs: Tensor | None = None
    """[R, K] float32."""


class SampledTokens(NamedTuple):
    """Tokens sampled for one request: after its newest token, then after each draft token."""

    request: RequestState
    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]


class StepOutput:
    """Sampled tokens of one step. Construction starts the asynchronous copy to the host."""

    def __init__(self, groups: Sequence[SampledGroup] = ()) -> None:
        """Start the copies; a request is in one group at most."""
        self.requests = list(dict.fromkeys(r for group in groups for r, _ in group.slots))
        """Requests that get their tokens: the engine removes aborted and mispredicted ones."""

        self._groups = [
            SampledGroup(
                slots,
                _to_host_async(token_ids),
                _to_host_async(logprobs),
                *(None if top is None else _to_host_async(top) for top in tops),
            )
            for slots, token_ids, logprobs, *tops in groups
        ]
        self._copied = None
        if any(group.token_ids.is_cuda for group in groups):
            device = groups[0].token_ids.device
            self._copied = torch.cuda.current_stream(device).record_event()

    def get_output(self) -> list[SampledTokens]:
        """Wait for the copies and return the tokens of `requests`, in order."""
        if self._copied is not None:
            self._copied.synchronize()
        output = {request: SampledTokens(request, [], [], []) for request in self.requests}
        for group in self._groups:
            rows = zip(group.token_ids.tolist(), group.logprobs.tolist(), _top(group), strict=True)
            for (request, _), (id_, logprob, top) in zip(group.slots, rows, strict=True):
                if request in output:
                    tokens = output[request]
                    tokens.token_ids.append(id_)
                    tokens.logprobs.append(logprob)
                    tokens.top_logprobs.append(top)
        return list(output.values())


def _top(group: SampledGroup) -> list[dict[int, float]]:
    """Return each row's most likely allowed tokens with their log probabilities, best first."""
    if group.top_token_ids is None or group.top_logprobs is None:
        return [{} for _ in group.slots]
    rows = zip(group.slots, group.top_token_ids.tolist(), group.top_logprobs.tolist(), strict=True)
    return [
        {
            id_: logprob
            for id_, logprob in list(zip(ids, logprobs, strict=True))[: state.request.num_logprobs]
            if logprob > -math.inf
        }
        for (state, _), ids, logprobs in rows
    ]


def resolve_placeholders(token_ids: Tensor, last_token_ids: Tensor) -> Tensor:
    """Replace each placeholder, `~batch_slot`, by the last token sampled in that batch slot.

    Args:
        token_ids: any shape, int64.
        last_token_ids: [batch slots] int64.

    >>> resolve_placeholders(torch.tensor([7, ~2, 0]), torch.tensor([11, 12, 13]))
    tensor([ 7, 13,  0])
    """
    return torch.where(token_ids < 0, last_token_ids[(~token_ids).clamp(min=0)], token_ids)


def _to_host_async(values: Tensor) -> Tensor:
    """Start a copy to pinned host memory."""
    if not values.is_cuda:
        return values
    return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
