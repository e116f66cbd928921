"""Safetensors files, read and written one tensor at a time.

Reading is the library's `safe_open`, opened for each tensor, so that the pages of one tensor are
unmapped before the next is read. Writing is our own, since the library's writer needs all tensors
of a file in memory:

    8 bytes      length of the header, little-endian
    header       JSON: name -> dtype, shape, first and last byte of its data; padded with spaces
    data         the tensors end to end, little-endian, row by row

Source: the format's description in the documentation of safetensors.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.errors import CheckpointError
from calumma.files import atomic_write

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_ALIGNMENT = 8

WriteCallback = Callable[[int], None]
"""Called with the number of bytes just written."""


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file in the order of their data, reading the header only.

    Raises:
        CheckpointError: the file is truncated or not a safetensors file, or holds a tensor of a
            dtype that is not read.
    """
    tensors: dict[str, LazyTensor] = {}
    with _opened(path) as file:
        for name in file.offset_keys():
            view = file.get_slice(name)
            dtype = view.get_dtype()
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name} is of type {dtype}; expected one of "
                    f"{', '.join(_DTYPES)}. Save it as one of these."
                )
            read = partial(_read_tensor, path, name)
            tensors[name] = LazyTensor(tuple(view.get_shape()), _DTYPES[dtype], read)
    return tensors


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file; empty if it has none.

    Raises:
        CheckpointError: the file is truncated or not a safetensors file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _read_tensor(path: Path, name: str) -> Tensor:
    with _opened(path) as file:
        return file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is not a complete safetensors file ({error}); expected a whole one. Copy or download it again."
        ) from error


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor], on_write: WriteCallback | None = None) -> None:
    """Write a file atomically, with one tensor in memory at a time.

    Raises:
        OutputError: the disk is full or not writable.
    """
    # The widest dtype first, so that each tensor is aligned to its width; else in the given order.
    order = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in order:
        offsets = [end, end := end + tensor.num_bytes]
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, tensor in order:
            data = tensor.read()
            assert (tuple(data.shape), data.dtype) == (tensor.shape, tensor.dtype), name
            file.write(data.reshape(-1).view(torch.uint8).numpy().data)
            if on_write is not None:
                on_write(tensor.num_bytes)
