"""Specs of GPU kinds from their data sheets, with assumed prices and networks."""

from dataclasses import dataclass

from calumma.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
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
    # name, GiB, FLOPs, memory and NVLink and network in bytes per second, watts, dollars per hour
    GpuSpec("a100-40gb", 39, 312e12, 1.56e12, 300e9, 25e9, 400, 1.5),
    GpuSpec("a100-80gb", 79, 312e12, 2.04e12, 300e9, 25e9, 400, 2.0),
    GpuSpec("h100-80gb", 79, 989e12, 3.35e12, 450e9, 50e9, 700, 3.0),
    GpuSpec("h200-141gb", 139, 989e12, 4.8e12, 450e9, 50e9, 700, 3.5),
    GpuSpec("b200-180gb", 178, 2250e12, 7.7e12, 900e9, 50e9, 1000, 5.0),
)
GPU_SPECS = {gpu.name: gpu for gpu in _KINDS}
"""Specs by name."""


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
