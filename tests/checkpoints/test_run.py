"""Checkpoints of a run: whole, the newest, of this run, and exact for every optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from calumma.checkpoints.run import (
    Checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from calumma.errors import CheckpointError


def save(run: Path, step: int, fingerprint: str = "f") -> None:
    tensor = torch.full((2, 3), float(step)).T
    save_checkpoint(run, Checkpoint(step, {"a": tensor, "seen": [1, 2]}), fingerprint)


def test_the_newest_is_taken_up_and_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None and taken.step == 100
    assert torch.equal(taken.state["a"], torch.full((3, 2), 100.0))
    assert taken.state["seen"] == [1, 2]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000100"]


def test_a_run_that_has_not_begun_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, "f") is None


def test_half_a_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-00000004.tmp").mkdir()
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None and taken.step == 3
    save(tmp_path, 4)
    assert not (tmp_path / "checkpoints" / "step-00000004.tmp").exists()


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 3, "theirs")
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path, "ours")
    folder = tmp_path / "checkpoints"
    assert str(caught.value) == (
        f"{folder / 'step-00000003'} was written by a run of another config or other data "
        f"(theirs, this run is ours). Choose another --out, or delete {folder} to begin anew."
    )


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_an_optimizer_goes_on_as_if_nothing_had_been(kind: str, tmp_path: Path) -> None:
    def made() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2, bias=False)
        if kind == "adamw":
            return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)
        if kind == "muon":
            return layer, torch.optim.Muon(layer.parameters(), lr=0.1)
        return layer, torch.optim.SGD(layer.parameters(), lr=0.1)

    def learn(layer: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            layer(torch.tensor([1.0, step, -1.0])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = made()
    learn(whole, optimizer, range(3))
    state = {"model": whole.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path, Checkpoint(3, state), "f")
    learn(whole, optimizer, range(3, 6))
    resumed, fresh = made()
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None
    resumed.load_state_dict(taken.state["model"])
    fresh.load_state_dict(taken.state["optimizer"])
    learn(resumed, fresh, range(3, 6))
    assert torch.equal(whole.weight, resumed.weight)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "numbers": {0: 1.5, 7: True, "x": None},
        "tensors": [torch.arange(3), {"deep": torch.tensor(2, dtype=torch.uint8)}],
        "text": "tensor",
        "empty": {},
        "tensor": 3,
    }
    save_checkpoint(tmp_path, Checkpoint(1, state), "f")
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None
    back = taken.state
    assert back["numbers"] == {0: 1.5, 7: True, "x": None}
    assert [type(key) for key in back["numbers"]] == [int, int, str]
    assert torch.equal(back["tensors"][0], torch.arange(3))
    assert back["tensors"][1]["deep"].dtype == torch.uint8
    assert (back["text"], back["empty"], back["tensor"]) == ("tensor", {}, 3)
