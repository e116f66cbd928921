"""Rank and world size of this process, and the collectives that training uses."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from calumma.checkpoints.checkpointer import CHECKPOINT_GROUP
from calumma.errors import ConfigError
from calumma.model.kv_cache import to_device_async
from calumma.runtime import TorchrunRank, enable_flight_recorder, torchrun_rank
from calumma.train.step_metrics import DeferredNumbers

_STARTUP_TIMEOUT = timedelta(minutes=30)
"""Timeout of collectives outside the steps: another rank may still be compiling, detecting faces or
exporting a model folder."""


@dataclass(frozen=True)
class DistContext:
    """Rank of this process; every method is a collective that all ranks must call."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank on this machine, and index of the GPU."""

    timeout_seconds: int = 600
    """Timeout of collectives in the steps, except the first."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files of the run."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, without gradient; on one rank the tensor itself."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def max(self, tensor: Tensor) -> Tensor:
        """Return the element-wise maximum over ranks, without gradient."""
        if self.size == 1:
            return tensor
        greatest = tensor.detach().clone()
        torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX)
        return greatest

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks; its gradient is that of this rank's tensor alone.

        Averaging the gradients over ranks afterwards gives the gradient of one rank with all data.
        """
        if self.size == 1:
            return tensor
        return tensor + (self.sum(tensor) / self.size - tensor).detach()

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors [n, ...] of all ranks to [n * size, ...], in their order."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over ranks, in one all-reduce."""
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
        """Return the sums of plain numbers over ranks, in one all-reduce."""
        return self.sum_numbers_later(numbers).read()

    def sum_numbers_later(self, numbers: Sequence[float]) -> DeferredNumbers:
        """Start to sum plain numbers over ranks, in one all-reduce."""
        tensor = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1 and torch.distributed.get_backend() == "nccl":
            tensor = to_device_async(tensor, torch.device("cuda"))
        return DeferredNumbers(self.sum(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self.sum_numbers([float(flag)])[0] > 0

    def limit_waiting(self, in_steps: bool) -> None:
        """Set the timeout of all collectives but those of checkpoints.

        Args:
            in_steps: `timeout_seconds`; else the timeout of start-up and end.
        """
        if self.size == 1:
            return
        timeout = timedelta(seconds=self.timeout_seconds) if in_steps else _STARTUP_TIMEOUT
        for group in torch.distributed.distributed_c10d._world.pg_map:
            if group.group_desc != CHECKPOINT_GROUP:
                torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.any(False)


def require_divisible_batch(field: str, batch_size: int, num_ranks: int) -> None:
    """Raise `ConfigError` if a batch does not divide over the ranks."""
    if batch_size % num_ranks:
        nearest = max(1, round(batch_size / num_ranks)) * num_ranks
        raise ConfigError(
            f"{field}={batch_size} does not divide over {num_ranks} ranks; the nearest that does "
            f"is {field}={nearest}. Change it, or start another number of ranks."
        )


SINGLE_PROCESS = DistContext()
"""A run of one process."""


@contextlib.contextmanager
def init_distributed(
    device: torch.device, run: Path, timeout_seconds: int = 600, *, groups_one_rank: bool = False
) -> Iterator[DistContext]:
    """Join the process group of torchrun (NCCL on GPUs, else Gloo) for the length of the block.

    Args:
        device: of this rank.
        run: folder of the run, in which PyTorch's flight recorder writes the last collectives of
            a rank, BACKEND-trace-rank-RANK, when one times out.
        timeout_seconds: timeout of collectives in the steps.
        groups_one_rank: whether one rank alone gets a process group too, which FSDP2 needs.
    """
    launch = torchrun_rank() or TorchrunRank(0, 1, 0)
    if launch.world_size == 1 and not groups_one_rank:
        yield SINGLE_PROCESS
        return
    backend, gpu = "gloo", None
    if device.type == "cuda":
        backend, gpu = "nccl", torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(gpu)
    trace = run / f"{backend}-trace-rank-"
    enable_flight_recorder(trace)
    store: Any
    if launch.world_size == 1:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # its stubs lack both stores
    else:
        # torchrun keeps its store over restarts, and ranks would read the addresses of processes
        # that ended (pytorch/pytorch issue 135712): so each attempt has a prefix of its own.
        shared, _, _ = next(rendezvous("env://", timeout=_STARTUP_TIMEOUT))
        store = torch.distributed.PrefixStore(  # type: ignore[attr-defined]
            f"attempt-{launch.restart_count}", shared
        )
    torch.distributed.init_process_group(
        backend, timeout=_STARTUP_TIMEOUT, store=store, rank=launch.rank, world_size=launch.world_size, device_id=gpu
    )
    dist = DistContext(launch.rank, launch.world_size, launch.local_rank, timeout_seconds)
    try:
        yield dist
        dist.barrier()  # leaving earlier would cut off the threads of ranks that still communicate
    except RuntimeError:
        if gpu is None:  # NCCL writes its own when a collective times out
            dump: Any = torch._C._distributed_c10d
            Path(f"{trace}{launch.rank}").write_bytes(dump._dump_fr_trace())
        raise
    finally:
        torch.distributed.destroy_process_group()
