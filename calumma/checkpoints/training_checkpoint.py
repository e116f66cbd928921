"""Checkpoints of a run: what it takes to go on exactly where it stopped.

    RUN/checkpoints/step-00000100/*.safetensors   every tensor of the state, numbered
    RUN/checkpoints/step-00000100/state.json      the state, with a number for each tensor

Where ranks hold a tensor in parts, each writes its own parts to a file of its own; they are read
again by any number of ranks, through torch.distributed.checkpoint. A checkpoint is written under
another name and renamed; the newest whole one is taken up. Nothing in it is a pickle.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.safetensors_io import read_metadata, read_tensors
from calumma.errors import CheckpointError, FileError
from calumma.files import read_json, replacing, write_json, writing

_PLACES = "DCP_SHARDING_INFO"
"""Where torch.distributed.checkpoint notes, in a file's metadata, what place its parts have."""

_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """One step to be saved."""

    step: int

    state: Any
    """Tensors, numbers, strings, None, and lists, tuples and dicts of them, nested at will."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay when a new one is saved."""

    keep_latest: int = 2
    """The newest; the older of two is there should the disk break the newer."""

    keep_every: int = 0
    """Those of steps that this divides stay for good; 0 keeps none so."""

    def is_permanent(self, step: int) -> bool:
        """Whether a step's stays for good."""
        return bool(self.keep_every) and step % self.keep_every == 0


@dataclass(frozen=True)
class SavedCheckpoint:
    """One saved step, to be taken up."""

    folder: Path
    step: int
    record: Any

    def load_full(self) -> Any:
        """The state, with every tensor as a whole on the CPU."""
        tensors: dict[str, Tensor] = {}
        for name in self.record["files"]:
            tensors |= load_file(self.folder / name)
        return _put_back(self.record["state"], lambda mark: tensors[mark["tensor"]])

    def load_meta(self) -> Any:
        """The state, with tensors of the meta device: shapes and dtypes without values."""
        return _put_back(self.record["state"], _without_values)

    def load_lazy(self) -> Any:
        """The state, with tensors that are read when asked for, whole, whatever ranks wrote them.

        Raises:
            CheckpointError: a file is no whole safetensors file.
        """
        parts = _parts(self.folder, self.record["files"])
        return _put_back(
            self.record["state"], lambda mark: _joined(_without_values(mark), parts[mark["tensor"]])
        )

    def load_into(self, state: Any) -> None:
        """Read into the tensors of a state of the same form; each rank only its own parts."""
        tensors: dict[str, Tensor] = {}
        _pair(self.record["state"], state, tensors)
        reader = HuggingFaceStorageReader(str(self.folder))
        with warnings.catch_warnings():
            # Alone it works alone, as we want it to, and says so.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({name: tensor.detach() for name, tensor in tensors.items()}, storage_reader=reader)


@dataclass(frozen=True)
class FlatCheckpoint:
    """A checkpoint taken apart, as it is written."""

    step: int

    record: dict[str, Any]
    """What `state.json` will hold, but for the files."""

    tensors: dict[str, Tensor]
    """The state's, by number."""


def flatten_checkpoint(checkpoint: Checkpoint, fingerprint: str) -> FlatCheckpoint:
    """What there is to be written of a checkpoint; the tensors are the state's own, no copies."""
    tensors: dict[str, Tensor] = {}
    state = _take_out(checkpoint.state, tensors)
    record = {"step": checkpoint.step, "fingerprint": fingerprint, "state": state}
    return FlatCheckpoint(checkpoint.step, record, tensors)


def write_checkpoint(
    run: Path,
    checkpoint: FlatCheckpoint,
    retention: RetentionPolicy,
    group: torch.distributed.ProcessGroup | None = None,
) -> None:
    """Write what was taken apart, then drop what need not be kept; called by all ranks.

    Args:
        run: the run's folder.
        apart: what to write.
        keep: which checkpoints stay.
        group: whom the ranks speak through, on the CPU; None is as they always do.

    Raises:
        OutputError: this rank could not write.
        CheckpointError: another one could not.
    """
    folder = _folder_of(run, checkpoint.step)
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    cut = any(isinstance(tensor, DTensor) for tensor in checkpoint.tensors.values())
    temporary = folder.with_name(folder.name + ".tmp")
    with writing(folder), contextlib.ExitStack() as renaming:
        with all_ranks_or_raise(group):
            if first:
                renaming.enter_context(replacing(folder)).mkdir()
        with all_ranks_or_raise(group):
            if cut:
                writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
                with _plainly():
                    save(checkpoint.tensors, storage_writer=writer, process_group=group)
            elif first:
                plain = {name: t.cpu().contiguous() for name, t in checkpoint.tensors.items()}
                save_file(plain, temporary / "tensors.safetensors")
        with all_ranks_or_raise(group):
            if first:
                files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
                write_json(temporary / "state.json", checkpoint.record | {"files": files})
                if not cut:
                    # save_file's files can be read by their owner only, whatever the umask.
                    shutil.copymode(temporary / "state.json", temporary / "tensors.safetensors")
                renaming.close()
                for old in _dropped(run, retention):
                    shutil.rmtree(old)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Raise what went wrong on a rank, in the place of torch's collection of it."""
    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error


@contextlib.contextmanager
def all_ranks_or_raise(group: torch.distributed.ProcessGroup | None) -> Iterator[None]:
    """All ranks come out of the block whole, or none: where one fails, all raise."""
    trouble: Exception | None = None
    try:
        yield
    except Exception as error:
        trouble = error
    failed = torch.tensor(float(trouble is not None))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(failed, group=group)
    if trouble is not None:
        raise trouble
    if failed:
        raise CheckpointError(
            "another rank could not write its part of a checkpoint; expected all parts. That rank "
            "says why; the same command goes on from the checkpoint before."
        )


def _folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def _saved(run: Path) -> list[Path]:
    folders = (run / "checkpoints").glob(f"{_PREFIX}*")
    return sorted(path for path in folders if path.suffix != ".tmp")


def _dropped(run: Path, keep: RetentionPolicy) -> list[Path]:
    return [
        path for path in _saved(run)[: -keep.keep_latest] if not keep.is_permanent(_step_of(path))
    ]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def saved_steps(run: Path) -> list[int]:
    """The steps of a run's whole checkpoints, in order."""
    return [_step_of(path) for path in _saved(run) if read_complete_record(path) is not None]


def open_checkpoint(run: Path, step: int) -> SavedCheckpoint:
    """The checkpoint of a step, which is one of `saved_steps`."""
    folder = _folder_of(run, step)
    return SavedCheckpoint(folder, step, read_json(folder / "state.json"))


def delete_checkpoints_after(run: Path, step: int) -> None:
    """Delete the checkpoints of later steps than this: the run goes back to it."""
    for path in _saved(run):
        if _step_of(path) > step:
            shutil.rmtree(path)


def newest_checkpoint(
    run: Path, fingerprint: str, max_step: int | None = None
) -> SavedCheckpoint | None:
    """The newest whole checkpoint of a run, or None where it has none.

    Args:
        run: the run's folder.
        fingerprint: of everything that decides the run's course, as the run saved it.
        latest: the latest step that is asked for; None takes any.

    Raises:
        CheckpointError: it was written by a run of another config or other data, or all that
            there are are damaged.
    """
    folders = [path for path in _saved(run) if max_step is None or _step_of(path) <= max_step]
    for folder in reversed(folders):
        record = read_complete_record(folder)
        if record is None:
            continue
        if record["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{folder} was written by a run of another config or other data "
                f"({record['fingerprint']}, this run is {fingerprint}). Choose another --out, or "
                f"delete {run / 'checkpoints'} to begin anew."
            )
        return SavedCheckpoint(folder, record["step"], record)
    if folders:
        raise CheckpointError(
            f"{run / 'checkpoints'}: files of {', '.join(f.name for f in folders)} are missing or "
            "cut short; expected one whole checkpoint. Copy it again, or delete the folder to begin "
            "anew."
        )
    return None


def read_complete_record(folder: Path) -> Any:
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


@dataclass(frozen=True)
class _Part:
    """A block of a tensor in one rank's file."""

    starts: list[int]
    """Its first place on each side of the whole."""

    stored: LazyTensor

    def put_into(self, whole: Tensor) -> None:
        place = tuple(slice(s, s + n) for s, n in zip(self.starts, self.stored.shape, strict=True))
        whole[place] = self.stored.read()


def _parts(folder: Path, files: Iterable[str]) -> dict[str, list[_Part]]:
    """Where the parts of each tensor lie, by its number."""
    parts: dict[str, list[_Part]] = {}
    for name in files:
        told = read_metadata(folder / name).get(_PLACES)
        places = json.loads(told) if told else {}
        for number, stored in read_tensors(folder / name).items():
            starts = places[number]["saved_offsets"] if told else [0] * len(stored.shape)
            parts.setdefault(number, []).append(_Part(starts, stored))
    return parts


def _joined(form: Tensor, parts: list[_Part]) -> LazyTensor:
    def read() -> Tensor:
        whole = torch.empty(form.shape, dtype=form.dtype)
        for part in parts:
            part.put_into(whole)
        return whole

    return LazyTensor(tuple(form.shape), form.dtype, read)


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
