"""Files of `torch.save`, read and written one tensor at a time, without running pickled code.

A file is a zip of a pickle, which names the tensors, and of their bytes. Reading uses `torch.load`
with `weights_only`, which allows only tensors and plain containers, and with `mmap`. Writing is our
own: `torch.save` needs all tensors in memory, and with `torch.serialization.skip_data` it took
eight times as long and wrote wrong checksums.
"""

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
"""Tensors up to this size, such as norms, are read when the file is opened."""


def open_torch_file(path: Path, key: str | None = None) -> dict[str, LazyTensor]:
    """Return the tensors of a file, reading only the small ones.

    Args:
        path: a .pth or .ckpt file in the zip format of torch.save.
        key: entry of the file that holds the tensors; if absent or None, the file itself does.

    Raises:
        CheckpointError: the file is truncated, older than the zip format, holds code, or holds no
            tensors by name.
    """
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in _mapped(path, key).items():
        read = partial(_read, path, key, name)
        if tensor.nbytes <= MAX_EAGER_BYTES:
            read = partial(Tensor.clone, tensor.clone().contiguous())
        tensors[name] = LazyTensor(tuple(tensor.shape), tensor.dtype, read)
    return tensors


def _read(path: Path, key: str | None, name: str) -> Tensor:
    # Mapped for each tensor, so that its pages are unmapped before the next is read.
    return _mapped(path, key)[name].clone().contiguous()


def _mapped(path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds code or pickled objects other than tensors, which were not loaded; "
            "expected names and tensors. Use the original file of the release."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is truncated, or not a file of torch.save in its zip format; expected a "
            "complete .pth or .ckpt file. Copy or download it again."
        ) from error
    tensors: Any = content
    if key is not None and isinstance(content, Mapping) and key in content:
        tensors = content[key]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            f"{path}: does not hold tensors by name; expected the state dict of a model. Give the folder of a release."
        )
    return dict(tensors)


class TorchFileWriter:
    """Writes a file of torch.save with one tensor in memory at a time.

    Opened by `torch_file_writers`; every tensor of `specs` must be written, in any order.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], key: str | None = None) -> None:
        """Start a file.

        Args:
            path: the file.
            specs: shape and dtype of every tensor that will be written.
            key: entry of the file that holds the tensors; None is the file itself.
        """
        self._pending = dict(specs)
        self._keys = {name: f"{number}" for number, name in enumerate(specs)}
        self._zip = zipfile.ZipFile(path, "w")
        tensors = {
            name: _Tensor(_Storage(self._keys[name], dtype, prod(shape)), shape)
            for name, (shape, dtype) in specs.items()
        }
        pickled = io.BytesIO()
        # With torch.save's protocol; data.pkl must be the first file of the zip.
        _Pickler(pickled, protocol=2).dump({key: tensors} if key else tensors)
        self._put("data.pkl", pickled.getbuffer())
        self._put("byteorder", b"little")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, of the shape and dtype in its spec."""
        assert (tuple(tensor.shape), tensor.dtype) == self._pending.pop(name), name
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._put(f"data/{self._keys[name]}", data)

    def close(self, *, complete: bool) -> None:
        """Close the file; a complete one is readable."""
        if complete:
            assert not self._pending, f"not written: {sorted(self._pending)[:3]}"
            self._put("version", b"3\n")
        self._zip.close()

    def _put(self, name: str, data: bytes | memoryview) -> None:
        entry = zipfile.ZipInfo(f"archive/{name}")
        entry.file_size = len(data)
        # Uncompressed and aligned to 64 bytes, so that a reader can map it.
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
    """Placeholder that is pickled as torch's instructions to rebuild a tensor from its storage."""

    storage: _Storage
    shape: Shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        given = (self.storage, 0, self.shape, strides, False, hooks)
        return torch._utils._rebuild_tensor_v2, given


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        """Return the reference to a storage, whose bytes are a separate file of the zip."""
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
    """Open files to be written in parallel, each atomically.

    Raises:
        OutputError: the disk is full or not writable.
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
    path: Path, tensors: Mapping[str, LazyTensor], key: str | None = None, on_write: WriteCallback | None = None
) -> None:
    """Write a file atomically, with one tensor in memory at a time.

    Raises:
        OutputError: the disk is full or not writable.
    """
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    with torch_file_writers({path: specs}, key) as (writer,):
        for name, tensor in tensors.items():
            writer.write(name, tensor.read())
            if on_write is not None:
                on_write(tensor.num_bytes)
