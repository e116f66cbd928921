"""The machine that a run would start on, told as kinds of GPUs are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from calumma.errors import ConfigError
from calumma.gpu_specs import GIB, Gpu, gpu_called, gpu_kind
from calumma.runtime import choose_device, launched

_SIDE = 1024
"""Of the square matrices whose product tells what a CPU's cores can do."""

CPU_MFU = 0.5
"""Share of that a step reaches; `benches/train_step.py` saw 0.63 at width 256, and less below."""


@dataclass(frozen=True)
class Machine:
    """Where a run would start."""

    gpu: Gpu
    """One GPU, or the CPU of one process."""

    number: int
    is_cpu: bool = False


def this_machine(device: str) -> Machine:
    """What a run's `device` is here, as many times as torchrun has started us.

    Raises:
        ConfigError: there is no such device, or it is a GPU that no sheet tells of.
    """
    chosen = choose_device(device)
    launch = launched()
    number = launch.size if launch is not None else 1
    if chosen.type != "cuda":
        return Machine(_cpu(), number, is_cpu=True)
    name = torch.cuda.get_device_name(chosen)
    gpu = gpu_called(name)
    if gpu is None:
        raise ConfigError(
            f"the GPU here is a {name}, of which no sheet is known; expected one that is. Name the "
            "most alike with --gpu."
        )
    return Machine(gpu, number)


def named_machine(gpu: str | None, number: int | None, device: str) -> Machine:
    """GPUs of a named kind, or what is here where none is named.

    Raises:
        ConfigError: no such kind is known, or there is no such device here.
    """
    if gpu is not None:
        return Machine(gpu_kind(gpu), 1 if number is None else number)
    here = this_machine(device)
    return here if number is None else Machine(here.gpu, number, here.is_cpu)


def _cpu() -> Gpu:
    """The CPU, its speed measured in a blink; a process has its memory to itself."""
    left, right = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
    seconds = min(_timed(lambda: left @ right) for _ in range(4))
    copied = torch.ones(1 << 24)
    copying = min(_timed(lambda: copied.clone()) for _ in range(2))
    return Gpu(
        name="this CPU",
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // GIB,
        flops=2.0 * _SIDE**3 / seconds,
        memory_bandwidth=2 * copied.nbytes / copying,
        link=1e9,
        network=1e9,
        watts=0,
        price=0,
    )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
