"""Checkpoints of a run: what it takes to go on exactly where it stopped.

    RUN/checkpoints/step-00000100/*.safetensors   every tensor of the state, numbered
    RUN/checkpoints/step-00000100/state.json      the state, with a number for each tensor

Where ranks hold a tensor in parts, each writes its own parts to a file of its own; they are read
again by any number of ranks, through torch.distributed.checkpoint. A checkpoint is written under
another name and renamed; the newest whole one is taken up. Nothing in it is a pickle.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from calumma.errors import CheckpointError, FileError
from calumma.files import read_json, replacing, write_json


@dataclass(frozen=True)
class Checkpoint:
    """One step to be saved."""

    step: int

    state: Any
    """Tensors, numbers, strings, None, and lists, tuples and dicts of them, nested at will."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a new one is saved."""

    last: int = 2
    """The newest; the older of two is there should the disk break the newer."""

    every: int = 0
    """Those of steps that this divides stay for good; 0 keeps none so."""


@dataclass(frozen=True)
class Saved:
    """One saved step, to be taken up."""

    folder: Path
    step: int
    record: Any

    def whole(self) -> Any:
        """The state, with every tensor as a whole on the CPU."""
        tensors: dict[str, Tensor] = {}
        for name in self.record["files"]:
            tensors |= load_file(self.folder / name)
        return _put_back(self.record["state"], lambda mark: tensors[mark["tensor"]])

    def form(self) -> Any:
        """The state, with tensors of the meta device: shapes and dtypes without values."""
        return _put_back(self.record["state"], _without_values)

    def fill(self, state: Any) -> None:
        """Read into the tensors of a state of the same form; each rank only its own parts."""
        tensors: dict[str, Tensor] = {}
        _pair(self.record["state"], state, tensors)
        reader = HuggingFaceStorageReader(str(self.folder))
        with warnings.catch_warnings():
            # Alone it works alone, as we want it to, and says so.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({name: tensor.detach() for name, tensor in tensors.items()}, storage_reader=reader)


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, fingerprint: str, keep: Keep | None = None
) -> None:
    """Write a checkpoint, then drop those that need not be kept; called by all ranks."""
    tensors: dict[str, Tensor] = {}
    state = _take_out(checkpoint.state, tensors)
    folder = run / "checkpoints" / f"step-{checkpoint.step:08d}"
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    cut = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    if not first:
        _write_parts(folder, tensors if cut else None)
        return
    with replacing(folder) as temporary:
        temporary.mkdir()
        if cut:
            _write_parts(folder, tensors)
        else:
            plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, temporary / "tensors.safetensors")
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        record = {"step": checkpoint.step, "fingerprint": fingerprint, "files": files}
        write_json(temporary / "state.json", record | {"state": state})
    for old in _dropped(run, keep or Keep()):
        shutil.rmtree(old)
    if not cut and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _write_parts(folder: Path, tensors: dict[str, Tensor] | None) -> None:
    """Write what this rank holds; all ranks together. None: wait for the first, who writes."""
    if tensors is None:
        torch.distributed.barrier()
        return
    temporary = folder.with_name(folder.name + ".tmp")
    torch.distributed.barrier()  # until the first has made the folder
    writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    save(tensors, storage_writer=writer)
    torch.distributed.barrier()


def _saved(run: Path) -> list[Path]:
    folders = (run / "checkpoints").glob("step-*")
    return sorted(path for path in folders if path.suffix != ".tmp")


def _dropped(run: Path, keep: Keep) -> list[Path]:
    old = _saved(run)[: -keep.last]
    return [path for path in old if not keep.every or int(path.name[5:]) % keep.every]


def saved_steps(run: Path) -> list[int]:
    """The steps of a run's whole checkpoints, in order."""
    return [int(path.name[5:]) for path in _saved(run) if _whole_record(path) is not None]


def drop_after(run: Path, step: int) -> None:
    """Delete the checkpoints of later steps than this: the run goes back to it."""
    for path in _saved(run):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


def newest_checkpoint(run: Path, fingerprint: str, latest: int | None = None) -> Saved | None:
    """The newest whole checkpoint of a run, or None where it has none.

    Args:
        run: the run's folder.
        fingerprint: of everything that decides the run's course, as the run saved it.
        latest: the latest step that is asked for; None takes any.

    Raises:
        CheckpointError: it was written by a run of another config or other data, or all that
            there are are damaged.
    """
    folders = [path for path in _saved(run) if latest is None or int(path.name[5:]) <= latest]
    for folder in reversed(folders):
        record = _whole_record(folder)
        if record is None:
            continue
        if record["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{folder} was written by a run of another config or other data "
                f"({record['fingerprint']}, this run is {fingerprint}). Choose another --out, or "
                f"delete {run / 'checkpoints'} to begin anew."
            )
        return Saved(folder, record["step"], record)
    if folders:
        raise CheckpointError(
            f"{run / 'checkpoints'}: files of {', '.join(f.name for f in folders)} are missing or "
            "cut short; wanted one whole checkpoint. Copy it again, or delete the folder to begin "
            "anew."
        )
    return None


def _whole_record(folder: Path) -> Any:
    """What `state.json` says, or None where it or a file that it names is not all there."""
    try:
        record = read_json(folder / "state.json")
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
    except (OSError, FileError, KeyError, TypeError):
        return None
    return record if sizes == record["files"] else None


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with a numbered mark for each tensor, which goes into `tensors`."""
    if isinstance(value, Tensor):
        number = f"{len(tensors):06d}"
        tensors[number] = value.detach()
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": number, "shape": list(value.shape), "dtype": dtype}
    if isinstance(value, dict):
        # A list of pairs: JSON would turn whole-number keys into strings.
        return {"dict": [[key, _take_out(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_take_out(entry, tensors) for entry in value]
    return value


def _without_values(mark: Any) -> Tensor:
    return torch.empty(mark["shape"], dtype=getattr(torch, mark["dtype"]), device="meta")


def _put_back(value: Any, tensor: Any) -> Any:
    """The value with what `tensor` makes of each mark in its place."""
    if isinstance(value, list):
        return [_put_back(entry, tensor) for entry in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensor(value)
    if isinstance(value, dict):
        return {key: _put_back(entry, tensor) for key, entry in value["dict"]}
    return value


def _pair(value: Any, state: Any, tensors: dict[str, Tensor]) -> None:
    """Note each tensor of `state` under the number that its mark in `value` has."""
    if isinstance(value, list):
        for entry, inner in zip(value, state, strict=True):
            _pair(entry, inner, tensors)
    elif isinstance(value, dict) and "tensor" in value:
        tensors[value["tensor"]] = state
    elif isinstance(value, dict):
        for key, entry in value["dict"]:
            _pair(entry, state[key], tensors)
