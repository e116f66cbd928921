"""Files of torch.save: tensors come out, code never runs."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.meta.torch_pickle import (
    MAX_EAGER_BYTES,
    open_torch_file,
    torch_file_writers,
    write_torch_file,
)
from calumma.errors import CheckpointError

LARGE = torch.arange(MAX_EAGER_BYTES, dtype=torch.float32)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_torch_file(path)
    return str(caught.value)


TENSORS = {
    "large": LARGE,
    "small": torch.ones(3, dtype=torch.bfloat16),
    "columns": torch.randn(5, 4, dtype=torch.float64).T,
    "half": torch.randn(2, 3, 1, 1).half(),
    "one": torch.tensor(3.0),
    "none": torch.zeros(0, 2),
}
STORED = {name: LazyTensor.from_tensor(tensor) for name, tensor in TENSORS.items()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, told = tmp_path / "a.pth", []
    write_torch_file(path, STORED, on_write=told.append)
    read = open_torch_file(path)
    assert {n: (t.shape, t.dtype) for n, t in read.items()} == {
        n: (tuple(t.shape), t.dtype) for n, t in TENSORS.items()
    }
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in TENSORS.items())
    assert sum(told) == sum(tensor.nbytes for tensor in TENSORS.values())
    read["small"].read().zero_()
    assert read["small"].read().tolist() == [1, 1, 1]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("weights_only", [True, False])
def test_torch_reads_what_we_write(mmap: bool, weights_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_torch_file(path, STORED, "state_dict")
    read = torch.load(path, mmap=mmap, weights_only=weights_only)["state_dict"]
    assert list(read) == list(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_files_side_by_side_are_all_whole_or_none(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    kinds = {path: {"x": ((2,), torch.float32)} for path in paths}
    with torch_file_writers(kinds) as (first, second):
        second.write("x", torch.ones(2))
        first.write("x", torch.zeros(2))
    assert [open_torch_file(path)["x"].read().tolist() for path in paths] == [[0, 0], [1, 1]]
    with pytest.raises(KeyboardInterrupt), torch_file_writers(kinds) as (first, _):
        first.write("x", torch.ones(2))
        raise KeyboardInterrupt
    assert open_torch_file(paths[0])["x"].read().tolist() == [0, 0]


def test_tensors_may_stand_one_name_further_in(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": LARGE}, "step": 3}, path)
    assert torch.equal(open_torch_file(path, "state_dict")["a"].read(), LARGE)
    torch.save({"a": LARGE}, path)
    assert set(open_torch_file(path, "state_dict")) == {"a"}


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "a.pth", tmp_path / "made"
    torch.save({"a": LARGE, "b": Bomb(made)}, path)
    assert refusal(path) == (
        f"{path}: holds pickled objects that are no tensors, or code; expected tensors and names "
        "alone. It was not run, and nothing of it is loaded."
    )
    assert not made.exists()


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_a_file_cut_short_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": LARGE}, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path) == (
        f"{path}: is no whole file of torch.save, or one from before its zip format; expected a "
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
        f"{path}: holds something else than tensors by name; expected the state of a model. Name the "
        "folder of a release."
    )
