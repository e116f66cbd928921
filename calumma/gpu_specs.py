"""Kinds of GPUs, as data: what their makers' sheets say, and two prices that anyone may change."""

from __future__ import annotations

from dataclasses import dataclass

from calumma.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """One kind, as it stands in machines of eight."""

    name: str

    memory_gib: int
    """What the driver shows, which is less than what the name says in 10^9 bytes."""

    peak_flops: float
    """Dense bfloat16 operations a second."""

    memory_bandwidth: float
    """Bytes a second between its memory and its cores."""

    nvlink_bandwidth: float
    """Bytes a second that it sends to its neighbours in the machine (NVLink, one direction)."""

    network_bandwidth: float
    """Bytes a second that it sends to other machines: one card to a GPU. An assumption."""

    max_watts: float
    """At its limit."""

    price_per_hour: float
    """US dollars an hour. An assumption: change it to what you pay."""

    gpus_per_node: int = 8
    """GPUs in a machine."""


_KINDS = (
    GpuSpec(
        name="a100-40gb",
        memory_gib=39,
        peak_flops=312e12,
        memory_bandwidth=1.56e12,
        nvlink_bandwidth=300e9,
        network_bandwidth=25e9,
        max_watts=400,
        price_per_hour=1.5,
    ),
    GpuSpec(
        name="a100-80gb",
        memory_gib=79,
        peak_flops=312e12,
        memory_bandwidth=2.04e12,
        nvlink_bandwidth=300e9,
        network_bandwidth=25e9,
        max_watts=400,
        price_per_hour=2.0,
    ),
    GpuSpec(
        name="h100-80gb",
        memory_gib=79,
        peak_flops=989e12,
        memory_bandwidth=3.35e12,
        nvlink_bandwidth=450e9,
        network_bandwidth=50e9,
        max_watts=700,
        price_per_hour=3.0,
    ),
    GpuSpec(
        name="h200-141gb",
        memory_gib=139,
        peak_flops=989e12,
        memory_bandwidth=4.8e12,
        nvlink_bandwidth=450e9,
        network_bandwidth=50e9,
        max_watts=700,
        price_per_hour=3.5,
    ),
    GpuSpec(
        name="b200-180gb",
        memory_gib=178,
        peak_flops=2250e12,
        memory_bandwidth=7.7e12,
        nvlink_bandwidth=900e9,
        network_bandwidth=50e9,
        max_watts=1000,
        price_per_hour=5.0,
    ),
)
GPU_SPECS = {gpu.name: gpu for gpu in _KINDS}
"""By name."""


def gpu_spec(name: str) -> GpuSpec:
    """The kind called `name`.

    >>> gpu_kind("a100-80gb").watts
    400

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in GPU_SPECS:
        raise ConfigError(f"GPU {name!r} is not known; expected one of {', '.join(GPU_SPECS)}.")
    return GPU_SPECS[name]


_SLOWER = {"h100": ("pcie", "nvl")}
"""Cards of a family that compute less than the others."""


def gpu_spec_of_device(device: str) -> GpuSpec | None:
    """The kind whose peak a GPU has, by the name its driver gives it; None where it is not known.

    Of a family, such as A100s with 40 and 80 GB, it may be another size with the same peak.

    >>> gpu_called("NVIDIA H100 80GB HBM3").name, gpu_called("NVIDIA H100 PCIe")
    ('h100-80gb', None)
    """
    name = device.lower()
    for gpu in _KINDS:
        family = gpu.name.split("-")[0]
        if family in name and not any(word in name for word in _SLOWER.get(family, ())):
            return gpu
    return None
