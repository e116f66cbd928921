"""Checkpoints of a run: whole, the newest, of this run, and exact for every optimizer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from calumma.checkpoints.training_checkpoint import (
    Checkpoint,
    RetentionPolicy,
    _unwrap_dcp_errors,
    flatten_checkpoint,
    newest_checkpoint,
    write_checkpoint,
)
from calumma.errors import CheckpointError, OutputError
from calumma.files import os_errors_as_output_errors

Harm = Callable[[Path], None]


def save(run: Path, step: int, fingerprint: str = "f") -> None:
    tensor = torch.full((2, 3), float(step)).T
    write_checkpoint(
        run,
        flatten_checkpoint(Checkpoint(step, {"a": tensor, "seen": [1, 2]}), fingerprint),
        RetentionPolicy(),
    )


def test_the_newest_is_taken_up_and_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None and taken.step == 100
    assert torch.equal(taken.load_full()["a"], torch.full((3, 2), 100.0))
    assert taken.load_full()["seen"] == [1, 2]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000100"]


def test_all_who_may_read_its_record_may_read_its_tensors(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = list((tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert len(files) == 2
    assert len({path.stat().st_mode for path in files}) == 1


def test_those_of_every_so_many_steps_stay_for_good(tmp_path: Path) -> None:
    for step in range(1, 9):
        state = {"a": torch.zeros(1)}
        write_checkpoint(
            tmp_path,
            flatten_checkpoint(Checkpoint(step, state), "f"),
            RetentionPolicy(keep_latest=1, keep_every=3),
        )
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000006", "step-00000008"]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("harm", [Path.unlink, cut_short])
def test_a_damaged_one_is_passed_over(name: str, harm: Harm, tmp_path: Path) -> None:
    for step in (3, 4):
        save(tmp_path, step)
    harm(tmp_path / "checkpoints" / "step-00000004" / name)
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None and taken.step == 3
    assert torch.equal(taken.load_full()["a"], torch.full((3, 2), 3.0))


def test_where_all_are_damaged_the_run_is_refused(tmp_path: Path) -> None:
    for step in (3, 4):
        save(tmp_path, step)
        (tmp_path / "checkpoints" / f"step-0000000{step}" / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path, "f")
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoints'}: files of step-00000003, step-00000004 are missing or cut "
        "short; expected one whole checkpoint. Copy it again, or delete the folder to begin anew."
    )


def test_a_state_is_read_into_tensors_of_its_form(tmp_path: Path) -> None:
    state = {"a": [torch.arange(6.0).view(2, 3), {"b": torch.tensor(7)}], "n": 3}
    write_checkpoint(tmp_path, flatten_checkpoint(Checkpoint(1, state), "f"), RetentionPolicy())
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None
    form = taken.load_meta()
    matrix, number = form["a"][0], form["a"][1]["b"]
    assert (matrix.device.type, matrix.shape, number.dtype) == ("meta", (2, 3), torch.int64)
    into = {"a": [torch.zeros(2, 3), {"b": torch.tensor(0)}], "n": 3}
    taken.load_into(into)
    assert torch.equal(into["a"][0], state["a"][0]) and into["a"][1]["b"] == 7


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
    write_checkpoint(tmp_path, flatten_checkpoint(Checkpoint(3, state), "f"), RetentionPolicy())
    learn(whole, optimizer, range(3, 6))
    resumed, fresh = made()
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None
    resumed.load_state_dict(taken.load_full()["model"])
    fresh.load_state_dict(taken.load_full()["optimizer"])
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
    write_checkpoint(tmp_path, flatten_checkpoint(Checkpoint(1, state), "f"), RetentionPolicy())
    taken = newest_checkpoint(tmp_path, "f")
    assert taken is not None
    back = taken.load_full()
    assert back["numbers"] == {0: 1.5, 7: True, "x": None}
    assert [type(key) for key in back["numbers"]] == [int, int, str]
    assert torch.equal(back["tensors"][0], torch.arange(3))
    assert back["tensors"][1]["deep"].dtype == torch.uint8
    assert (back["text"], back["empty"], back["tensor"]) == ("tensor", {}, 3)


def test_where_another_rank_cannot_write_this_one_stops_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda failed, group: failed.fill_(1.0))
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 3)
    assert str(caught.value) == (
        "another rank could not write its part of a checkpoint; expected all parts. That rank says "
        "why; the same command goes on from the checkpoint before."
    )


def test_what_a_rank_s_disk_says_is_said_as_plainly_as_alone() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OutputError, match="r: no space left on the device"),
        os_errors_as_output_errors(Path("r")),
        _unwrap_dcp_errors(),
    ):
        raise CheckpointException("write", {1: (full, None)})  # type: ignore[dict-item]
