"""The ranks of one run: who we are, and what all of us say together.

A rank is one process of those that torchrun starts; without torchrun there is one, `ALONE`. Where
several compute with one seed and the same sums, they stay equal to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from calumma.runtime import TorchrunRank, torchrun_rank

_PATIENCE = timedelta(minutes=30)
"""So long a rank waits for the others, who may still be decoding pictures or looking for faces."""


@dataclass(frozen=True)
class DistContext:
    """The place of this process among all; every method is to be called by all ranks alike."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The number of this process on its machine, and of its GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; alone, the tensor itself. No gradient."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def max(self, tensor: Tensor) -> Tensor:
        """The greatest over ranks, number for number; alone, the tensor itself. No gradient."""
        if self.size == 1:
            return tensor
        greatest = tensor.detach().clone()
        torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX)
        return greatest

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks; its gradient flows into our own part as if it were the whole.

        With gradients that are averaged over ranks afterwards, that is the gradient of one rank
        that held all.
        """
        if self.size == 1:
            return tensor
        return tensor + (self.sum(tensor) / self.size - tensor).detach()

    def gather(self, tensor: Tensor) -> Tensor:
        """[n, ...] of each rank -> [n * size, ...], in the order of the ranks."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Put the mean over ranks in the place of each gradient, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.size
        start = 0
        for gradient in gradients:
            end = start + gradient.numel()
            gradient.copy_(flat[start:end].view_as(gradient))
            start = end

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The sums of plain numbers over ranks, in one message."""
        if self.size == 1:
            return list(numbers)
        added: list[float] = self.sum(
            torch.tensor(numbers, dtype=torch.float64, device=self._device())
        ).tolist()
        return added

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.sum_numbers([float(flag)])[0] > 0

    def barrier(self) -> None:
        """Return when all ranks are here."""
        self.any(False)

    def _device(self) -> str:
        return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


SINGLE_PROCESS = DistContext()
"""One process without others."""


@contextlib.contextmanager
def init_distributed(device: torch.device) -> Iterator[DistContext]:
    """The world that torchrun started us in, for the length of the block; else `ALONE`.

    Ranks speak through NCCL on GPUs and through Gloo elsewhere.
    """
    launch: TorchrunRank | None = torchrun_rank()
    if launch is None or launch.world_size == 1:
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(launch.local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # torchrun keeps where ranks find each other from one attempt to the next, so those begun again
    # would read the addresses of the dead (pytorch/pytorch issue 135712): each has its own names.
    store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    named = torch.distributed.PrefixStore(  # type: ignore[attr-defined]  # its stubs lack it
        f"attempt-{launch.restart_count}", store
    )
    torch.distributed.init_process_group(
        backend, timeout=_PATIENCE, store=named, rank=rank, world_size=size
    )
    world = DistContext(launch.rank, launch.world_size, launch.local_rank)
    try:
        yield world
        world.barrier()  # none leaves while another still speaks: its threads would be cut off
    finally:
        torch.distributed.destroy_process_group()
