"""Between a host and its device: what is sent there, and what was drawn there and comes back.

A step is launched before the host knows what the one before it has drawn, so that a GPU need not
wait while the host keeps its books. Nothing on the way may wait for the device then. On a GPU that
wants pinned memory: a copy from or to any other may hold the host up until all that was launched
is done. torch gives pinned memory out anew only when the copies from and to it are over, so each
copy here takes memory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calumma.generate.request import RequestState

SampleSlots = Sequence[tuple[RequestState, int]]
"""Works, each with the number of guesses that are read behind the place to draw for."""

SampledGroup = tuple[SampleSlots, Tensor, Tensor]
"""Draws; the ids, [R] int64, and the natural logarithms of their probabilities, [R] float32."""

SampledTokens = tuple[RequestState, list[int], list[float]]
"""A work; what was drawn behind its newest id and behind each guess that was read with it; and
the natural logarithms of the probabilities of these."""


class StepOutput:
    """What one step has drawn, on its way to the host from when this is made."""

    def __init__(self, groups: Sequence[SampledGroup] = ()) -> None:
        """Begin to bring groups of draws to the host; no work stands in two of them."""
        self.requests = list(dict.fromkeys(work for draws, _, _ in groups for work, _ in draws))
        """Those that want their draws; whoever does not any more is taken out."""

        self._groups = [
            (draws, _to_host_async(ids), _to_host_async(logprobs))
            for draws, ids, logprobs in groups
        ]
        self._over = None
        if any(ids.is_cuda for _, ids, _ in groups):
            self._over = torch.cuda.current_stream(groups[0][1].device).record_event()

    def get_output(self) -> list[SampledTokens]:
        """What was drawn for `works`, in order; waits until it has come."""
        if self._over is not None:
            self._over.synchronize()
        told: dict[RequestState, SampledTokens] = {work: (work, [], []) for work in self.requests}
        for draws, ids, logprobs in self._groups:
            for (work, _), id_, logprob in zip(draws, ids.tolist(), logprobs.tolist(), strict=True):
                if work in told:
                    told[work][1].append(id_)
                    told[work][2].append(logprob)
        return list(told.values())


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, for what is launched from now on; the host does not wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def resolve_placeholders(token_ids: Tensor, last_token_ids: Tensor) -> Tensor:
    """Ids, with those that the host does not know yet put in where `~seat` stands for them.

    Args:
        ids: any shape, int64.
        latest: [seats] int64, the id that was drawn last at each seat.

    >>> put_in(torch.tensor([7, ~2, 0]), torch.tensor([11, 12, 13]))
    tensor([ 7, 13,  0])
    """
    return torch.where(token_ids < 0, last_token_ids[(~token_ids).clamp(min=0)], token_ids)


def _to_host_async(values: Tensor) -> Tensor:
    """The values where the host will be able to read them."""
    if not values.is_cuda:
        return values
    return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
