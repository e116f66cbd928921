"""Tests of hardware detection."""

from types import SimpleNamespace

import pytest
import torch

from calumma.errors import ConfigError
from calumma.plan.hardware import detect_hardware, resolve_hardware


def test_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    here = detect_hardware("cpu")
    assert (here.num_gpus, here.is_cpu, here.gpu.name) == (1, True, "this CPU")
    assert 1e9 < here.gpu.peak_flops < 1e14
    assert here.gpu.memory_gib >= 1


def test_torchrun_ranks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert detect_hardware("cpu").num_gpus == 4
    assert resolve_hardware(None, 6, "cpu").num_gpus == 6


def test_named_gpu_need_not_exist() -> None:
    named = resolve_hardware("h100-80gb", 16, "auto")
    assert (named.gpu.name, named.num_gpus, named.is_cpu) == ("h100-80gb", 16, False)
    assert resolve_hardware("h100-80gb", None, "auto").num_gpus == 1


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    properties = SimpleNamespace(total_memory=85_100_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert detect_hardware("cuda").gpu.memory_gib == 79


def test_gpu_without_specs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce 256")
    with pytest.raises(ConfigError) as caught:
        detect_hardware("cuda")
    assert str(caught.value) == (
        "the GPU is a GeForce 256, whose specs are not known; expected a known one. Name the most similar with --gpu."
    )
