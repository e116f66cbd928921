"""Safetensors files, against the library of that name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.safetensors_io import open_safetensors, write_safetensors
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


def test_the_library_reads_what_we_write(path: Path) -> None:
    told: list[int] = []
    write_safetensors(
        path,
        {name: LazyTensor.from_tensor(tensor) for name, tensor in TENSORS.items()},
        told.append,
    )
    read = load_file(path)
    assert set(read) == set(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    assert sum(told) == sum(tensor.nbytes for tensor in TENSORS.values())


def test_we_read_what_the_library_writes(path: Path) -> None:
    save_file(TENSORS, path, metadata={"format": "pt"})
    stored = open_safetensors(path)
    assert {name: each.shape for name, each in stored.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert all(torch.equal(stored[name].read(), tensor) for name, tensor in TENSORS.items())


def test_each_reading_gives_a_tensor_of_its_own(path: Path) -> None:
    save_file(TENSORS, path)
    stored = open_safetensors(path)["whole"]
    stored.read().zero_()
    assert torch.equal(stored.read(), TENSORS["whole"])


def test_tensors_that_are_no_plain_rows_are_written_as_rows(path: Path) -> None:
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
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"?" + whole[9:])


def _change_header(path: Path, name: str, value: object) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["whole"][name] = value
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


BREAKS: list[tuple[Callable[[Path], None], str]] = [
    (_cut, "it has {less} bytes, its header tells of {size}"),
    (_cut_header, "its header is cut short"),
    (_longer, "it has {more} bytes, its header tells of {size}"),
    (_no_json, "its header cannot be read"),
    (lambda path: _change_header(path, "shape", [2, 4, 4]), "tensor whole does not lie where its"),
    (lambda path: _change_header(path, "shape", [-2, 4]), "its header cannot be read"),
    (lambda path: _change_header(path, "data_offsets", [0]), "its header cannot be read"),
    (lambda path: path.write_bytes(b"\xff" * 50), "its header is cut short"),
    (lambda path: path.write_bytes(b""), "its header is cut short"),
]


@pytest.mark.parametrize(("damage", "why"), BREAKS)
def test_a_file_that_is_not_whole_is_refused(
    damage: Callable[[Path], None], why: str, path: Path
) -> None:
    save_file(TENSORS, path)
    size = path.stat().st_size
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    told = why.format(less=size - 1, more=size + 1, size=size)
    assert str(caught.value).startswith(f"{path}: is no whole safetensors file ({told}")
    assert str(caught.value).endswith("). Copy or download it again.")


def test_a_file_that_is_cut_after_it_was_opened_is_refused(path: Path) -> None:
    save_file(TENSORS, path)
    stored = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="it became shorter while it was read"):
        stored["half"].read()


def test_quantised_weights_are_refused(path: Path) -> None:
    save_file({"codes": torch.zeros(3, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert str(caught.value) == (
        f"{path}: tensor codes is of type I8; expected one of F64, F32, F16, BF16. Save it in one of "
        "these; quantised weights are not read."
    )
