"""Hardware that a run would start on: this machine's, or named GPUs."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from calumma.errors import ConfigError
from calumma.gpu_specs import GIB, GpuSpec, gpu_spec, gpu_spec_of_device
from calumma.runtime import resolve_device, torchrun_rank

_SIDE = 1024
"""Side of the square matrices whose product measures a CPU's peak."""

CPU_MFU = 0.5
"""Fraction of a CPU's measured peak that a step reaches: 0.63 at model_dim 256, less below."""


@dataclass(frozen=True)
class Hardware:
    """GPUs, or processes on a CPU, of a run."""

    gpu: GpuSpec
    """Specs of one GPU, or of the CPU of one process."""

    num_gpus: int
    is_cpu: bool = False


def detect_hardware(device: str) -> Hardware:
    """Return the hardware of `device` on this machine, one per torchrun process.

    Raises:
        ConfigError: the device does not exist, or its GPU has no known specs.
    """
    chosen = resolve_device(device)
    launch = torchrun_rank()
    number = launch.world_size if launch is not None else 1
    if chosen.type != "cuda":
        return Hardware(_cpu(), number, is_cpu=True)
    name = torch.cuda.get_device_name(chosen)
    gpu = gpu_spec_of_device(name)
    if gpu is None:
        raise ConfigError(
            f"the GPU is a {name}, whose specs are not known; expected a known one. Name the most similar with --gpu."
        )
    memory_gib = torch.cuda.get_device_properties(chosen).total_memory // GIB
    return Hardware(replace(gpu, memory_gib=memory_gib), number)


def resolve_hardware(gpu: str | None, num_gpus: int | None, device: str) -> Hardware:
    """Return GPUs of a named kind, or this machine's hardware if `gpu` is None.

    Raises:
        ConfigError: the kind is not known, or the device does not exist.
    """
    if gpu is not None:
        return Hardware(gpu_spec(gpu), 1 if num_gpus is None else num_gpus)
    here = detect_hardware(device)
    return here if num_gpus is None else Hardware(here.gpu, num_gpus, here.is_cpu)


def _cpu() -> GpuSpec:
    """Measure this CPU's specs briefly; a process is assumed to have all its memory."""
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
