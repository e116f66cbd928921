"""What is here, told as a kind of GPU."""

from __future__ import annotations

import pytest
import torch

from calumma.errors import ConfigError
from calumma.plan.hardware import detect_hardware, resolve_hardware


def test_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    here = detect_hardware("cpu")
    assert (here.num_gpus, here.is_cpu, here.gpu.name) == (1, True, "this CPU")
    assert 1e9 < here.gpu.peak_flops < 1e14
    assert here.gpu.memory_gib >= 1


def test_torchrun_s_ranks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert detect_hardware("cpu").num_gpus == 4
    assert resolve_hardware(None, 6, "cpu").num_gpus == 6


def test_a_named_kind_needs_not_be_here() -> None:
    named = resolve_hardware("h100-80gb", 16, "auto")
    assert (named.gpu.name, named.num_gpus, named.is_cpu) == ("h100-80gb", 16, False)
    assert resolve_hardware("h100-80gb", None, "auto").num_gpus == 1


def test_a_gpu_without_a_sheet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce 256")
    with pytest.raises(ConfigError) as caught:
        detect_hardware("cuda")
    assert str(caught.value) == (
        "the GPU here is a GeForce 256, of which no sheet is known; expected one that is. Name the "
        "most alike with --gpu."
    )
