"""Tests of the table of GPU specs."""

from dataclasses import astuple

import pytest

from calumma.errors import ConfigError
from calumma.gpu_specs import GPU_SPECS, gpu_spec, gpu_spec_of_device


def test_numbers_are_positive_and_memory_is_below_the_name_s() -> None:
    for name, gpu in GPU_SPECS.items():
        assert all(number > 0 for number in astuple(gpu)[1:])
        gigabytes = float(name.partition("-")[2].removesuffix("gb"))
        assert gpu.memory_gib * 1.024**3 < 1.1 * gigabytes


def test_unknown_gpu_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        gpu_spec("a100")
    assert str(caught.value) == (
        "GPU 'a100' is not known; expected one of a100-40gb, a100-80gb, h100-80gb, h200-141gb, b200-180gb."
    )


def test_driver_names_are_recognized() -> None:
    known = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H200": 989e12,
        "NVIDIA B200": 2250e12,
    }
    for name, flops in known.items():
        gpu = gpu_spec_of_device(name)
        assert gpu is not None and gpu.peak_flops == flops
    for name in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "Tesla T4", "NVIDIA GeForce RTX 4090"):
        assert gpu_spec_of_device(name) is None
