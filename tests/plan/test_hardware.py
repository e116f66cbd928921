"""What is here, told as a kind of GPU."""

from __future__ import annotations

import pytest
import torch

from calumma.errors import ConfigError
from calumma.plan.hardware import named_machine, this_machine


def test_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    here = this_machine("cpu")
    assert (here.number, here.is_cpu, here.gpu.name) == (1, True, "this CPU")
    assert 1e9 < here.gpu.flops < 1e14
    assert here.gpu.memory_gib >= 1


def test_torchrun_s_ranks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert this_machine("cpu").number == 4
    assert named_machine(None, 6, "cpu").number == 6


def test_a_named_kind_needs_not_be_here() -> None:
    named = named_machine("h100-80gb", 16, "auto")
    assert (named.gpu.name, named.number, named.is_cpu) == ("h100-80gb", 16, False)
    assert named_machine("h100-80gb", None, "auto").number == 1


def test_a_gpu_without_a_sheet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce 256")
    with pytest.raises(ConfigError) as caught:
        this_machine("cuda")
    assert str(caught.value) == (
        "the GPU here is a GeForce 256, of which no sheet is known; expected one that is. Name the "
        "most alike with --gpu."
    )
