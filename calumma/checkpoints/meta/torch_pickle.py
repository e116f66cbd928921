"""One file of torch's own format, a tensor at a time, without running what is pickled in it.

A file is a zip of a pickle, which names the tensors, and of their bytes. `weights_only` lets the
pickle build tensors and plain containers and nothing else, and mapping the file leaves the bytes
where they are until a tensor is copied out of them.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calumma.checkpoints.lazy_tensor import LazyTensor, Shape
from calumma.checkpoints.safetensors_io import WriteCallback
from calumma.errors import CheckpointError
from calumma.files import atomic_write

TensorSpec = tuple[Shape, torch.dtype]

MAX_EAGER_BYTES = 1 << 16
"""Tensors up to this size, norms above all, are kept when the file is first looked at."""


def open_torch_file(path: Path, key: str | None = None) -> dict[str, LazyTensor]:
    """The tensors of a file, only the small ones read.

    Args:
        path: a .pth or .ckpt file, which torch.save wrote in the last years.
        inside: the name under which the tensors stand, where they do not stand outermost.

    Raises:
        CheckpointError: the file is cut short, is older than zip files, holds code, or holds no
            tensors by name.
    """
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in _mapped(path, key).items():
        read = partial(_read, path, key, name)
        if tensor.nbytes <= MAX_EAGER_BYTES:
            read = partial(Tensor.clone, tensor.clone().contiguous())
        tensors[name] = LazyTensor(tuple(tensor.shape), tensor.dtype, read)
    return tensors


def _read(path: Path, inside: str | None, name: str) -> Tensor:
    # Mapped anew each time: the pages that one tensor touched are given back with its mapping.
    return _mapped(path, inside)[name].clone().contiguous()


def _mapped(path: Path, inside: str | None) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled objects that are no tensors, or code; expected tensors and "
            "names alone. It was not run, and nothing of it is loaded."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is no whole file of torch.save, or one from before its zip format; expected a "
            "whole .pth or .ckpt. Copy or download it again."
        ) from error
    tensors: Any = content
    if inside is not None and isinstance(content, Mapping) and inside in content:
        tensors = content[inside]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            f"{path}: holds something else than tensors by name; expected the state of a model. Name "
            "the folder of a release."
        )
    return dict(tensors)


class TorchFileWriter:
    """A file as torch.save writes it, but with one tensor at a time in memory.

    Opened by `writing_pickles`; every tensor that was told of must be written, in any order.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], key: str | None = None) -> None:
        """Begin a file.

        Args:
            path: where it goes.
            kinds: shape and dtype of every tensor that will be written.
            inside: a name under which all of them stand.
        """
        self._pending = dict(specs)
        self._keys = {name: f"{number}" for number, name in enumerate(specs)}
        self._zip = zipfile.ZipFile(path, "w")
        tensors = {
            name: _Tensor(_Storage(self._keys[name], dtype, prod(shape)), shape)
            for name, (shape, dtype) in specs.items()
        }
        pickled = io.BytesIO()
        # The protocol of torch.save; the first file in the zip must be this one.
        _Pickler(pickled, protocol=2).dump({key: tensors} if key else tensors)
        self._put("data.pkl", pickled.getbuffer())
        self._put("byteorder", b"little")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, of the shape and dtype that were told."""
        assert (tuple(tensor.shape), tensor.dtype) == self._pending.pop(name), name
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._put(f"data/{self._keys[name]}", data)

    def close(self, *, complete: bool) -> None:
        """End the file."""
        if complete:
            assert not self._pending, f"not written: {sorted(self._pending)[:3]}"
            self._put("version", b"3\n")
        self._zip.close()

    def _put(self, name: str, data: bytes | memoryview) -> None:
        entry = zipfile.ZipInfo(f"archive/{name}")
        entry.file_size = len(data)
        # Stored, at a multiple of 64 bytes, so that a reader can map it.
        assert self._zip.fp is not None
        start = self._zip.fp.tell() + _LOCAL_HEADER_BYTES + len(entry.filename) + 4
        padding = -start % _ALIGNMENT
        entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        with self._zip.open(entry, "w") as file:
            file.write(data)


_LOCAL_HEADER_BYTES = 30
_ALIGNMENT = 64


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class _Tensor:
    """What is pickled in a tensor's stead: how torch makes it of its storage."""

    storage: _Storage
    shape: Shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        given = (self.storage, 0, self.shape, strides, False, hooks)
        return torch._utils._rebuild_tensor_v2, given


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        """Storages are named here, and lie beside the pickle."""
        if not isinstance(value, _Storage):
            return None
        return ("storage", _STORAGES[value.dtype], value.key, "cpu", value.length)


_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


@contextmanager
def torch_file_writers(
    specs: Mapping[Path, Mapping[str, TensorSpec]], key: str | None = None
) -> Iterator[list[TorchFileWriter]]:
    """Open files to be written side by side; each is whole or not there.

    Raises:
        OutputError: the disk is full, or may not be written to.
    """
    with ExitStack() as stack:
        temporaries = [stack.enter_context(atomic_write(path)) for path in specs]
        writers: list[TorchFileWriter] = []
        try:
            for path, each in zip(temporaries, specs.values(), strict=True):
                writers.append(TorchFileWriter(path, each, key))
            yield writers
        except BaseException:
            for writer in writers:
                writer.close(complete=False)
            raise
        for writer in writers:
            writer.close(complete=True)


def write_torch_file(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    key: str | None = None,
    on_write: WriteCallback | None = None,
) -> None:
    """Write one file, holding one tensor at a time.

    Raises:
        OutputError: the disk is full, or may not be written to.
    """
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    with torch_file_writers({path: kinds}, key) as (writer,):
        for name, tensor in tensors.items():
            writer.write(name, tensor.read())
            on_write(tensor.num_bytes)
