"""Kinds of GPUs, as data: what their makers' sheets say, and two prices that anyone may change."""

from __future__ import annotations

from dataclasses import dataclass

from calumma.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind, as it stands in machines of eight."""

    name: str

    memory_gib: int
    """What the driver shows, which is less than what the name says in 10^9 bytes."""

    flops: float
    """Dense bfloat16 operations a second."""

    memory_bandwidth: float
    """Bytes a second between its memory and its cores."""

    link: float
    """Bytes a second that it sends to its neighbours in the machine (NVLink, one direction)."""

    network: float
    """Bytes a second that it sends to other machines: one card to a GPU. An assumption."""

    watts: float
    """At its limit."""

    price: float
    """US dollars an hour. An assumption: change it to what you pay."""

    in_machine: int = 8
    """GPUs in a machine."""


_KINDS = (
    Gpu(
        name="a100-40gb",
        memory_gib=39,
        flops=312e12,
        memory_bandwidth=1.56e12,
        link=300e9,
        network=25e9,
        watts=400,
        price=1.5,
    ),
    Gpu(
        name="a100-80gb",
        memory_gib=79,
        flops=312e12,
        memory_bandwidth=2.04e12,
        link=300e9,
        network=25e9,
        watts=400,
        price=2.0,
    ),
    Gpu(
        name="h100-80gb",
        memory_gib=79,
        flops=989e12,
        memory_bandwidth=3.35e12,
        link=450e9,
        network=50e9,
        watts=700,
        price=3.0,
    ),
    Gpu(
        name="h200-141gb",
        memory_gib=139,
        flops=989e12,
        memory_bandwidth=4.8e12,
        link=450e9,
        network=50e9,
        watts=700,
        price=3.5,
    ),
    Gpu(
        name="b200-180gb",
        memory_gib=178,
        flops=2250e12,
        memory_bandwidth=7.7e12,
        link=900e9,
        network=50e9,
        watts=1000,
        price=5.0,
    ),
)
GPUS = {gpu.name: gpu for gpu in _KINDS}
"""By name."""


def gpu_kind(name: str) -> Gpu:
    """The kind called `name`.

    >>> gpu_kind("a100-80gb").watts
    400

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in GPUS:
        raise ConfigError(f"GPU {name!r} is not known; expected one of {', '.join(GPUS)}.")
    return GPUS[name]


_SLOWER = {"h100": ("pcie", "nvl")}
"""Cards of a family that compute less than the others."""


def gpu_called(device: str) -> Gpu | None:
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
