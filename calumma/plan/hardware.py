"""The machine that a run would start on, told as kinds of GPUs are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from calumma.errors import ConfigError
from calumma.gpu_specs import GIB, GpuSpec, gpu_spec, gpu_spec_of_device
from calumma.runtime import choose_device, launched

_SIDE = 1024
"""Of the square matrices whose product tells what a CPU's cores can do."""

CPU_MFU = 0.5
"""Share of that a step reaches; `benches/train_step.py` saw 0.63 at width 256, and less below."""


@dataclass(frozen=True)
class Hardware:
    """Where a run would start."""

    gpu: GpuSpec
    """One GPU, or the CPU of one process."""

    num_gpus: int
    is_cpu: bool = False


def detect_hardware(device: str) -> Hardware:
    """What a run's `device` is here, as many times as torchrun has started us.

    Raises:
        ConfigError: there is no such device, or it is a GPU that no sheet tells of.
    """
    chosen = choose_device(device)
    launch = launched()
    number = launch.size if launch is not None else 1
    if chosen.type != "cuda":
        return Hardware(_cpu(), number, is_cpu=True)
    name = torch.cuda.get_device_name(chosen)
    gpu = gpu_spec_of_device(name)
    if gpu is None:
        raise ConfigError(
            f"the GPU here is a {name}, of which no sheet is known; expected one that is. Name the "
            "most alike with --gpu."
        )
    return Hardware(gpu, number)


def resolve_hardware(gpu: str | None, number: int | None, device: str) -> Hardware:
    """GPUs of a named kind, or what is here where none is named.

    Raises:
        ConfigError: no such kind is known, or there is no such device here.
    """
    if gpu is not None:
        return Hardware(gpu_spec(gpu), 1 if number is None else number)
    here = detect_hardware(device)
    return here if number is None else Hardware(here.gpu, number, here.is_cpu)


def _cpu() -> GpuSpec:
    """The CPU, its speed measured in a blink; a process has its memory to itself."""
    left, right = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
    seconds = min(_timed(lambda: left @ right) for _ in range(4))
    copied = torch.ones(1 << 24)
    copying = min(_timed(lambda: copied.clone()) for _ in range(2))
    return GpuSpec(
        name="this CPU",
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // GIB,
        peak_flops=2.0 * _SIDE**3 / seconds,
        memory_bandwidth=2 * copied.nbytes / copying,
        nvlink_bandwidth=1e9,
        network_bandwidth=1e9,
        max_watts=0,
        price_per_hour=0,
    )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
