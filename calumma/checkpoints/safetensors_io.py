"""One safetensors file, read and written a tensor at a time.

    8 bytes      length of the header, little-endian
    header       JSON: name -> dtype, shape, first and last byte of its data; padded with spaces
    data         the tensors end to end, little-endian, row by row

The library of that name maps a file into memory, or takes all tensors at once; here only one
tensor is held, and the header alone tells whether a file is whole.

Source: the format's own description, in the documentation of the library safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calumma.checkpoints.lazy_tensor import LazyTensor, Shape
from calumma.errors import CheckpointError
from calumma.files import replacing

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The types of `FLOATS`, by their names in the header."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
_ALIGNMENT = 8

Tell = Callable[[int], None]
"""Called with the number of bytes that were just written."""


def silent(num_bytes: int) -> None:
    """Tell nobody."""


def read_tensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file, none of them read yet.

    Raises:
        CheckpointError: the file is cut short or is no safetensors file, or holds a tensor that
            is not floating point.
    """
    header, start = _read_header(path)
    header.pop(_METADATA, None)
    tensors: dict[str, LazyTensor] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} is of type {entry['dtype']}; expected one of "
                f"{', '.join(DTYPES)}. Save it in one of these; quantised weights are not read."
            )
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if first != end or last - first != prod(shape) * dtype.itemsize:
            raise _broken(path, f"tensor {name} does not lie where its header says")
        tensors[name] = _stored(path, start + first, shape, dtype)
        end = last
    size = path.stat().st_size
    if size != start + end:
        raise _broken(path, f"it has {size} bytes, its header tells of {start + end}")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What the writer noted beside the tensors; empty where it noted nothing.

    Raises:
        CheckpointError: the file is cut short or is no safetensors file.
    """
    header, _ = _read_header(path)
    noted: dict[str, str] = header.get(_METADATA, {})
    return noted


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(_LONGEST_HEADER, path.stat().st_size - _LENGTH_BYTES):
            raise _broken(path, "its header is cut short")
        text = file.read(length)
    try:
        header = json.loads(text)
        for entry in (entry for name, entry in header.items() if name != _METADATA):
            first, last = entry["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (first, last, *entry["shape"])):
                raise ValueError("a place or a shape is no whole number")
            entry["dtype"].encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, "its header cannot be read") from error
    return header, _LENGTH_BYTES + length


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is no whole safetensors file ({why}). Copy or download it again."
    )


def _stored(path: Path, first: int, shape: Shape, dtype: torch.dtype) -> LazyTensor:
    def read() -> Tensor:
        # Read, not mapped: pages of a mapped file would count as this process's memory.
        data = torch.empty(prod(shape) * dtype.itemsize, dtype=torch.uint8)
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            _fill(data.numpy().data, file.readinto, path)
        return data.view(dtype).reshape(shape)

    return LazyTensor(shape, dtype, read)


def _fill(room: memoryview, read_into: Callable[[memoryview], int | None], path: Path) -> None:
    """One read gives at most 2 GiB."""
    while len(room):
        count = read_into(room)
        if not count:
            raise _broken(path, "it became shorter while it was read")
        room = room[count:]


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], tell: Tell = silent) -> None:
    """Write a file, holding one tensor at a time; it is whole or not there.

    Raises:
        OutputError: the disk is full, or may not be written to.
    """
    # The widest first, so that each lies at a multiple of its width; else in the order given.
    order = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    end = 0
    for name, tensor in order:
        places = [end, end := end + tensor.num_bytes]
        shape = list(tensor.shape)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": places}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, tensor in order:
            data = tensor.read()
            assert (tuple(data.shape), data.dtype) == (tensor.shape, tensor.dtype), name
            file.write(data.reshape(-1).view(torch.uint8).numpy().data)
            tell(tensor.num_bytes)
