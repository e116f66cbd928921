"""Tests of files of torch.save: tensors are read and written, code never runs."""

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
    """Creates a file when it is unpickled."""

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
LAZY = {name: LazyTensor.from_tensor(tensor) for name, tensor in TENSORS.items()}


def test_round_trip(tmp_path: Path) -> None:
    path, written = tmp_path / "a.pth", []
    write_torch_file(path, LAZY, on_write=written.append)
    read = open_torch_file(path)
    assert {n: (t.shape, t.dtype) for n, t in read.items()} == {
        n: (tuple(t.shape), t.dtype) for n, t in TENSORS.items()
    }
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in TENSORS.items())
    assert sum(written) == sum(tensor.nbytes for tensor in TENSORS.values())
    read["small"].read().zero_()
    assert read["small"].read().tolist() == [1, 1, 1]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("weights_only", [True, False])
def test_torch_reads_what_we_write(mmap: bool, weights_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_torch_file(path, LAZY, "state_dict")
    read = torch.load(path, mmap=mmap, weights_only=weights_only)["state_dict"]
    assert list(read) == list(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_parallel_files_are_written_atomically(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    specs = {path: {"x": ((2,), torch.float32)} for path in paths}
    with torch_file_writers(specs) as (first, second):
        second.write("x", torch.ones(2))
        first.write("x", torch.zeros(2))
    assert [open_torch_file(path)["x"].read().tolist() for path in paths] == [[0, 0], [1, 1]]
    with pytest.raises(KeyboardInterrupt), torch_file_writers(specs) as (first, _):
        first.write("x", torch.ones(2))
        raise KeyboardInterrupt
    assert open_torch_file(paths[0])["x"].read().tolist() == [0, 0]


def test_tensors_under_a_key(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": LARGE}, "step": 3}, path)
    assert torch.equal(open_torch_file(path, "state_dict")["a"].read(), LARGE)
    torch.save({"a": LARGE}, path)
    assert set(open_torch_file(path, "state_dict")) == {"a"}


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "a.pth", tmp_path / "made"
    torch.save({"a": LARGE, "b": Bomb(made)}, path)
    assert refusal(path) == (
        f"{path}: holds code or pickled objects other than tensors, which were not loaded; "
        "expected names and tensors. Use the original file of the release."
    )
    assert not made.exists()


@pytest.mark.parametrize("size", [0, 100, -30])
def test_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": LARGE}, path)
    path.write_bytes(path.read_bytes()[:size])
    assert refusal(path) == (
        f"{path}: is truncated, or not a file of torch.save in its zip format; expected a complete "
        ".pth or .ckpt file. Copy or download it again."
    )


def test_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "a.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(Bomb(made)))
    assert refusal(path).startswith(f"{path}: is truncated, or not a file of torch.save")
    assert not made.exists()


@pytest.mark.parametrize("content", [[LARGE], {"a": 1}, {"a": {"b": LARGE}}, LARGE])
def test_other_content_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    assert refusal(path) == (
        f"{path}: does not hold tensors by name; expected the state dict of a model. Give the folder of a release."
    )
