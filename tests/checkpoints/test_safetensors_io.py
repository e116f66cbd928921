"""Tests of reading and writing safetensors files, against the library."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.safetensors_io import open_safetensors, read_safetensors_metadata, write_safetensors
from calumma.errors import CheckpointError

TENSORS = {
    "half": torch.randn(3, 5).to(torch.bfloat16),
    "whole": torch.randn(2, 4, 3),
    "one": torch.tensor(7.0, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_library_reads_our_files(path: Path) -> None:
    written: list[int] = []
    write_safetensors(path, {name: LazyTensor.from_tensor(tensor) for name, tensor in TENSORS.items()}, written.append)
    read = load_file(path)
    assert set(read) == set(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    assert sum(written) == sum(tensor.nbytes for tensor in TENSORS.values())


def test_files_of_the_library_are_read(path: Path) -> None:
    save_file(TENSORS, path, metadata={"format": "pt"})
    lazy = open_safetensors(path)
    assert {name: each.shape for name, each in lazy.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert all(torch.equal(lazy[name].read(), tensor) for name, tensor in TENSORS.items())


def test_changing_a_read_tensor_does_not_change_the_file(path: Path) -> None:
    save_file(TENSORS, path)
    lazy = open_safetensors(path)["whole"]
    lazy.read().zero_()
    assert torch.equal(lazy.read(), TENSORS["whole"])


def test_non_contiguous_tensors_are_written_contiguously(path: Path) -> None:
    columns = torch.randn(4, 6).T
    write_safetensors(path, {"columns": LazyTensor.from_tensor(columns)})
    assert torch.equal(load_file(path)["columns"], columns)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _no_json(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"?" + data[9:])


def _change_header(path: Path, name: str, value: object) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["whole"][name] = value
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BREAKS: list[Callable[[Path], None]] = [
    _cut,
    _cut_header,
    _longer,
    _no_json,
    lambda path: _change_header(path, "shape", [2, 4, 4]),
    lambda path: _change_header(path, "shape", [-2, 4]),
    lambda path: _change_header(path, "data_offsets", [0]),
    lambda path: _change_header(path, "dtype", 3),
    lambda path: path.write_bytes(b"\xff" * 50),
    lambda path: path.write_bytes(b""),
    _make_folder,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_incomplete_file_is_refused(damage: Callable[[Path], None], path: Path) -> None:
    save_file(TENSORS, path)
    damage(path)
    for read in (open_safetensors, read_safetensors_metadata):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: is not a complete safetensors file (")
        assert message.endswith("); expected a whole one. Copy or download it again.")
        assert "\n" not in message


def test_file_truncated_after_opening_is_refused(path: Path) -> None:
    save_file(TENSORS, path)
    lazy = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        lazy["half"].read()


def test_other_dtypes_are_refused(path: Path) -> None:
    save_file({"codes": torch.zeros(3).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert str(caught.value) == (
        f"{path}: tensor codes is of type F8_E4M3; expected one of F64, F32, F16, BF16, I64, I32, "
        "I16, I8, U8, BOOL. Save it as one of these."
    )
