"""Files of torch.save: tensors come out, code never runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.pickle_file import SMALL_BYTES, read_pickled, write_pickled
from calumma.errors import CheckpointError

LARGE = torch.arange(SMALL_BYTES, dtype=torch.float32)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_pickled(path, {"large": LARGE, "small": torch.ones(3, dtype=torch.bfloat16)})
    read = read_pickled(path)
    assert (read["large"].shape, read["small"].dtype) == ((SMALL_BYTES,), torch.bfloat16)
    assert torch.equal(read["large"].read(), LARGE)
    assert read["small"].read().tolist() == [1, 1, 1]
    read["small"].read().zero_()
    assert read["small"].read().tolist() == [1, 1, 1]


def test_tensors_may_stand_one_name_further_in(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": LARGE}, "step": 3}, path)
    assert torch.equal(read_pickled(path, "state_dict")["a"].read(), LARGE)
    torch.save({"a": LARGE}, path)
    assert set(read_pickled(path, "state_dict")) == {"a"}


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "a.pth", tmp_path / "made"
    torch.save({"a": LARGE, "b": Bomb(made)}, path)
    assert refusal(path) == (
        f"{path}: holds pickled objects that are no tensors, or code; wanted tensors and names "
        "alone. It was not run, and nothing of it is loaded."
    )
    assert not made.exists()


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_a_file_cut_short_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": LARGE}, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path) == (
        f"{path}: is no whole file of torch.save, or one from before its zip format; wanted a "
        "whole .pth or .ckpt. Copy or download it again."
    )


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "a.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(Bomb(made)))
    assert refusal(path).startswith(f"{path}: is no whole file of torch.save")
    assert not made.exists()


@pytest.mark.parametrize("content", [[LARGE], {"a": 1}, {"a": {"b": LARGE}}, LARGE])
def test_other_things_than_tensors_by_name_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    assert refusal(path) == (
        f"{path}: holds something else than tensors by name; wanted the state of a model. Name the "
        "folder of a release."
    )
