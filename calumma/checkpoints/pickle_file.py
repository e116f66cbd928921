"""One file of torch's own format, read a tensor at a time, without running what is pickled in it.

A file is a zip of a pickle, which names the tensors, and of their bytes. `weights_only` lets the
pickle build tensors and plain containers and nothing else, and mapping the file leaves the bytes
where they are until a tensor is copied out of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calumma.checkpoints.stored import Stored
from calumma.errors import CheckpointError
from calumma.files import replacing

SMALL_BYTES = 1 << 16
"""Tensors up to this size, norms above all, are kept when the file is first looked at."""


def read_pickled(path: Path, inside: str | None = None) -> dict[str, Stored]:
    """The tensors of a file, only the small ones read.

    Args:
        path: a .pth or .ckpt file, which torch.save wrote in the last years.
        inside: the name under which the tensors stand, where they do not stand outermost.

    Raises:
        CheckpointError: the file is cut short, is older than zip files, holds code, or holds no
            tensors by name.
    """
    tensors: dict[str, Stored] = {}
    for name, tensor in _mapped(path, inside).items():
        read = partial(_read, path, inside, name)
        if tensor.nbytes <= SMALL_BYTES:
            read = partial(Tensor.clone, tensor.clone().contiguous())
        tensors[name] = Stored(tuple(tensor.shape), tensor.dtype, read)
    return tensors


def _read(path: Path, inside: str | None, name: str) -> Tensor:
    # Mapped anew each time: the pages that one tensor touched are given back with its mapping.
    return _mapped(path, inside)[name].clone().contiguous()


def _mapped(path: Path, inside: str | None) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled objects that are no tensors, or code; wanted tensors and "
            "names alone. It was not run, and nothing of it is loaded."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is no whole file of torch.save, or one from before its zip format; wanted a "
            "whole .pth or .ckpt. Copy or download it again."
        ) from error
    tensors: Any = content
    if inside is not None and isinstance(content, Mapping) and inside in content:
        tensors = content[inside]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            f"{path}: holds something else than tensors by name; wanted the state of a model. Name "
            "the folder of a release."
        )
    return dict(tensors)


def write_pickled(path: Path, content: Mapping[str, Any]) -> None:
    """Write what torch.load reads with `weights_only`; it is whole or not there.

    Raises:
        OutputError: the disk is full, or may not be written to.
    """
    with replacing(path) as temporary:
        torch.save(dict(content), temporary)
