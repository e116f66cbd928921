"""Specs of GPU kinds from their data sheets, with assumed prices and networks."""

from dataclasses import dataclass

from calumma.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """Specs of one kind of GPU, in nodes of eight."""

    name: str

    memory_gib: int
    """Memory that the driver reports, less than the name's multiple of 10^9 bytes."""

    peak_flops: float
    """Dense bfloat16 FLOPs per second."""

    memory_bandwidth: float
    """Bytes per second of the GPU's memory."""

    nvlink_bandwidth: float
    """Bytes per second to other GPUs of the node (NVLink, one direction)."""

    network_bandwidth: float
    """Bytes per second to other nodes, with one network card per GPU; an assumption."""

    max_watts: float
    """Power limit in watts."""

    price_per_hour: float
    """US dollars per hour; an assumption."""

    gpus_per_node: int = 8
    """Number of GPUs per node."""


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
"""Name -> specs."""


def gpu_spec(name: str) -> GpuSpec:
    """Return the specs of a kind of GPU.

    >>> gpu_spec("a100-80gb").max_watts
    400

    Raises:
        ConfigError: the kind is not known.
    """
    if name not in GPU_SPECS:
        raise ConfigError(f"GPU {name!r} is not known; expected one of {', '.join(GPU_SPECS)}.")
    return GPU_SPECS[name]


_OTHER_PEAK = {"h100": ("pcie", "nvl")}
"""Family -> cards with a lower peak, whose specs are not listed."""


def gpu_spec_of_device(device: str) -> GpuSpec | None:
    """Return the specs for the driver's name of a GPU, or None if its peak is not known.

    Cards of a family with the same peak, such as A100s of 40 and 80 GB, are not distinguished.

    >>> gpu_spec_of_device("NVIDIA H100 80GB HBM3").name, gpu_spec_of_device("NVIDIA H100 PCIe")
    ('h100-80gb', None)
    """
    name = device.lower()
    for gpu in _KINDS:
        family = gpu.name.split("-")[0]
        if family in name and not any(word in name for word in _OTHER_PEAK.get(family, ())):
            return gpu
    return None
