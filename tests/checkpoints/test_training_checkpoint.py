"""Tests of training checkpoints: completeness, selection, names, and exact resumption."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from calumma.checkpoints.training_checkpoint import (
    RetentionPolicy,
    _unwrap_dcp_errors,
    flatten_checkpoint,
    newest_checkpoint,
    open_checkpoint,
    write_checkpoint,
)
from calumma.errors import CheckpointError, OutputError
from calumma.files import os_errors_as_output_errors

Damage = Callable[[Path], None]


def save(run: Path, step: int, seed: int = 0) -> None:
    tensor = torch.full((2, 3), float(step)).T
    write_checkpoint(run, flatten_checkpoint(step, {"a": tensor, "seen": [1, 2]}, {"seed": seed}), RetentionPolicy())


def test_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None and saved.step == 100
    assert torch.equal(saved.load_full()["a"], torch.full((3, 2), 100.0))
    assert saved.load_full()["seen"] == [1, 2]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000100"]


def test_all_files_have_the_same_permissions(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = list((tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert len(files) == 2
    assert len({path.stat().st_mode for path in files}) == 1


def test_keep_every(tmp_path: Path) -> None:
    for step in range(1, 9):
        state = {"a": torch.zeros(1)}
        write_checkpoint(
            tmp_path, flatten_checkpoint(step, state, {"seed": 0}), RetentionPolicy(keep_latest=1, keep_every=3)
        )
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000006", "step-00000008"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate])
def test_damaged_checkpoint_is_skipped(name: str, damage: Damage, tmp_path: Path) -> None:
    for step in (3, 4):
        save(tmp_path, step)
    damage(tmp_path / "checkpoints" / "step-00000004" / name)
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None and saved.step == 3
    assert torch.equal(saved.load_full()["a"], torch.full((3, 2), 3.0))


def test_only_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    for step in (3, 4):
        save(tmp_path, step)
        (tmp_path / "checkpoints" / f"step-0000000{step}" / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path, {"seed": 0})
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoints'}: files of step-00000003, step-00000004 are missing or "
        "truncated; expected a complete checkpoint. Copy it again, or delete the folder to start "
        "over."
    )


def test_load_into(tmp_path: Path) -> None:
    state = {"a": [torch.arange(6.0).view(2, 3), {"b": torch.tensor(7)}], "n": 3}
    write_checkpoint(tmp_path, flatten_checkpoint(1, state, {"seed": 0}), RetentionPolicy())
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None
    meta = saved.load_meta()
    matrix, number = meta["a"][0], meta["a"][1]["b"]
    assert (matrix.device.type, matrix.shape, number.dtype) == ("meta", (2, 3), torch.int64)
    into = {"a": [torch.zeros(2, 3), {"b": torch.tensor(0)}], "n": 3}
    saved.load_into(into)
    assert torch.equal(into["a"][0], state["a"][0]) and into["a"][1]["b"] == 7


def test_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, {"seed": 0}) is None


def test_unfinished_checkpoint_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-00000004.tmp").mkdir()
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None and saved.step == 3
    save(tmp_path, 4)
    assert not (tmp_path / "checkpoints" / "step-00000004.tmp").exists()


def test_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 3, 1)
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path, {"seed": 2, "steps": 9})
    folder = tmp_path / "checkpoints"
    assert str(caught.value) == (
        f"{folder / 'step-00000003'} was written by a run with seed=1, steps=None; this run has "
        f"seed=2, steps=9. Change it back, choose another --out, or delete {folder} to start over."
    )


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_optimizer_resumes_exactly(kind: str, tmp_path: Path) -> None:
    def made() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2, bias=False)
        if kind == "adamw":
            return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)
        if kind == "muon":
            return layer, torch.optim.Muon(layer.parameters(), lr=0.1)
        return layer, torch.optim.SGD(layer.parameters(), lr=0.1)

    def train(layer: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            layer(torch.tensor([1.0, step, -1.0])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    reference, optimizer = made()
    train(reference, optimizer, range(3))
    state = {"model": reference.state_dict(), "optimizer": optimizer.state_dict()}
    write_checkpoint(tmp_path, flatten_checkpoint(3, state, {"seed": 0}), RetentionPolicy())
    train(reference, optimizer, range(3, 6))
    resumed, fresh = made()
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None
    resumed.load_state_dict(saved.load_full()["model"])
    fresh.load_state_dict(saved.load_full()["optimizer"])
    train(resumed, fresh, range(3, 6))
    assert torch.equal(reference.weight, resumed.weight)


def test_state_round_trip(tmp_path: Path) -> None:
    state = {
        "numbers": {0: 1.5, 7: True, "x": None},
        "tensors": [torch.arange(3), {"deep": torch.tensor(2, dtype=torch.uint8)}],
        "text": "tensor",
        "empty": {},
        "tensor": 3,
    }
    write_checkpoint(tmp_path, flatten_checkpoint(1, state, {"seed": 0}), RetentionPolicy())
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None
    back = saved.load_full()
    assert back["numbers"] == {0: 1.5, 7: True, "x": None}
    assert [type(key) for key in back["numbers"]] == [int, int, str]
    assert torch.equal(back["tensors"][0], torch.arange(3))
    assert back["tensors"][1]["deep"].dtype == torch.uint8
    assert (back["text"], back["empty"], back["tensor"]) == ("tensor", {}, 3)


def test_safetensors_files_have_dotted_names(tmp_path: Path) -> None:
    state = {
        "model": {"blocks.0.attention.query.weight": torch.ones(2, 3)},
        "optimizer": {"blocks.0.attention.query.weight": {"exp_avg": torch.zeros(2, 3)}},
        "random": [torch.tensor(7)],
        "step": 3,
    }
    write_checkpoint(tmp_path, flatten_checkpoint(3, state, {"seed": 0}), RetentionPolicy())
    path = tmp_path / "checkpoints" / "step-00000003" / "tensors.safetensors"
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == [
            "model.blocks.0.attention.query.weight",
            "optimizer.blocks.0.attention.query.weight.exp_avg",
            "random.0",
        ]
        query = file.get_tensor("model.blocks.0.attention.query.weight")
    assert torch.equal(query, torch.ones(2, 3))


def test_names_are_unique() -> None:
    state = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}
    with pytest.raises(AssertionError, match=r"a\.b"):
        flatten_checkpoint(1, state, {"seed": 0})


def test_numbered_format_is_refused_and_kept(tmp_path: Path) -> None:
    save(tmp_path, 3)
    folder = tmp_path / "checkpoints" / "step-00000003"
    record = json.loads((folder / "state.json").read_text())
    del record["format"]
    (folder / "state.json").write_text(json.dumps(record))
    before = sorted(path.name for path in folder.iterdir())
    for load in (lambda: newest_checkpoint(tmp_path, {"seed": 0}), lambda: open_checkpoint(tmp_path, 3)):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert str(caught.value) == (
            f"{folder} has checkpoint format 1; expected format 2. Finish the run with the version "
            "of calumma that started it, choose another --out, or delete "
            f"{folder.parent} to start over."
        )
    assert sorted(path.name for path in folder.iterdir()) == before


def test_failure_of_another_rank_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda failed, group: failed.fill_(1.0))
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 3)
    assert str(caught.value) == (
        "another rank could not write its part of a checkpoint; expected all parts. See the error "
        "of that rank; the same command resumes from the previous checkpoint."
    )


def test_dcp_errors_are_unwrapped() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OutputError, match="r: no space left on the device"),
        os_errors_as_output_errors(Path("r")),
        _unwrap_dcp_errors(),
    ):
        raise CheckpointException("write", {1: (full, None)})  # type: ignore[dict-item]
