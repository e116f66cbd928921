"""Training checkpoints: what a run needs to resume bit-exactly.

    RUN/checkpoints/step-00000100/*.safetensors   the tensors, under dotted names
    RUN/checkpoints/step-00000100/state.json      format, step, identity, all other values

A tensor's name is its path in the state: `model.blocks.0.attention.query.weight`,
`optimizer.<parameter>.exp_avg`. Sharded tensors (DTensor) are written by
torch.distributed.checkpoint in its Hugging Face layout, one file per rank, and are read again by
any number of ranks. A checkpoint is written to a temporary folder and renamed; a run resumes from
the newest complete one. No file is a pickle.
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.safetensors_io import open_safetensors, read_safetensors_metadata
from calumma.errors import CheckpointError, FileError
from calumma.files import atomic_write, os_errors_as_output_errors, read_json, write_json

CHECKPOINT_FORMAT = 2
"""Version of the files; format 1 numbered the tensors and had no entry `format`."""

_DCP_METADATA = "DCP_SHARDING_INFO"
"""Metadata key under which torch.distributed.checkpoint writes the offsets of a file's shards."""

_PREFIX = "step-"

_Shard = tuple[list[int], LazyTensor]
"""First index along each dimension of the full tensor, and the part of it in one rank's file."""


RunIdentity = Mapping[str, Any]
"""JSON values that decide a run's results: config fields by dotted name, hashes of its inputs."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay when a new one is saved."""

    keep_latest: int = 2
    """Number of newest checkpoints to keep; with two, one is left if the newest is damaged."""

    keep_every: int = 0
    """Checkpoints of steps that this number divides are never deleted; 0 means none."""

    def is_permanent(self, step: int) -> bool:
        """Return whether the checkpoint of `step` is never deleted."""
        return bool(self.keep_every) and step % self.keep_every == 0


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    record: Any

    def load_full(self) -> Any:
        """Return the state with full tensors on the CPU, whatever ranks wrote them."""
        return self._load(lambda lazy: lazy.read())

    def load_meta(self) -> Any:
        """Return the state with tensors of the meta device: shapes and dtypes without values."""
        return _unflatten(self.record["state"], _meta_tensor)

    def load_lazy(self) -> Any:
        """Return the state with a full LazyTensor for each tensor, whatever ranks wrote it.

        Raises:
            CheckpointError: a file is not a complete safetensors file.
        """
        return self._load(lambda lazy: lazy)

    def load_into(self, state: Any) -> None:
        """Read in place into the tensors of `state`; each rank reads only its own shards.

        Args:
            state: of the same structure as the saved one; its tensors may be DTensors.
        """
        tensors: dict[str, Tensor] = {}
        _flatten(state, "", tensors)
        reader = HuggingFaceStorageReader(str(self.folder))
        with warnings.catch_warnings():
            # DCP warns without a process group; loading in a single process is intended here.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=reader)

    def _load(self, convert: Callable[[LazyTensor], Any]) -> Any:
        shards = _open_shards(self.folder, self.record["files"])
        return _unflatten(
            self.record["state"], lambda mark: convert(_merge_shards(_meta_tensor(mark), shards[mark["tensor"]]))
        )


@dataclass(frozen=True)
class FlatCheckpoint:
    """A checkpoint as it is written: tensors by dotted name, all else as JSON."""

    step: int

    record: dict[str, Any]
    """Content of `state.json` but for the list of files."""

    tensors: dict[str, Tensor]


def flatten_checkpoint(step: int, state: Any, identity: RunIdentity) -> FlatCheckpoint:
    """Separate the tensors of a state from its other values; tensors are not copied.

    Args:
        step: the number of steps done.
        state: nested lists, tuples and dicts of tensors, numbers, strings and None.
        identity: of the run.
    """
    tensors: dict[str, Tensor] = {}
    record = {"format": CHECKPOINT_FORMAT, "step": step, "identity": dict(identity)}
    return FlatCheckpoint(step, record | {"state": _flatten(state, "", tensors)}, tensors)


def write_checkpoint(
    run: Path,
    checkpoint: FlatCheckpoint,
    retention: RetentionPolicy,
    group: torch.distributed.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint, then delete those that the policy does not keep; all ranks call it.

    Args:
        run: the run's folder.
        checkpoint: what to write.
        retention: which checkpoints stay.
        group: process group of a CPU backend; None is the default group.

    Raises:
        OutputError: this rank could not write.
        CheckpointError: another rank could not write.
    """
    folder = _folder_of(run, checkpoint.step)
    is_main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    is_sharded = any(isinstance(tensor, DTensor) for tensor in checkpoint.tensors.values())
    temporary = folder.with_name(folder.name + ".tmp")
    with os_errors_as_output_errors(folder), contextlib.ExitStack() as renaming:
        with all_ranks_or_raise(group):
            if is_main:
                renaming.enter_context(atomic_write(folder)).mkdir()
        with all_ranks_or_raise(group):
            if is_sharded:
                writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
                with _unwrap_dcp_errors():
                    save(checkpoint.tensors, storage_writer=writer, process_group=group)
            elif is_main:
                plain = {name: t.cpu().contiguous() for name, t in checkpoint.tensors.items()}
                save_file(plain, temporary / "tensors.safetensors")
        with all_ranks_or_raise(group):
            if is_main:
                files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
                write_json(temporary / "state.json", checkpoint.record | {"files": files})
                if not is_sharded:
                    # save_file ignores the umask: only the user who wrote the file could read it.
                    shutil.copymode(temporary / "state.json", temporary / "tensors.safetensors")
                renaming.close()
                for old in _expired(run, retention):
                    shutil.rmtree(old)


@contextlib.contextmanager
def _unwrap_dcp_errors() -> Iterator[None]:
    """Raise the first rank's error in place of DCP's collection of errors."""
    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error


@contextlib.contextmanager
def all_ranks_or_raise(group: torch.distributed.ProcessGroup | None) -> Iterator[None]:
    """Leave the block on all ranks or on none: if one rank fails, all ranks raise."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = torch.tensor(float(failure is not None))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(failed, group=group)
    if failure is not None:
        raise failure
    if failed:
        raise CheckpointError(
            "another rank could not write its part of a checkpoint; expected all parts. See the "
            "error of that rank; the same command resumes from the previous checkpoint."
        )


def _folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def _step_folders(run: Path) -> list[Path]:
    folders = (run / "checkpoints").glob(f"{_PREFIX}*")
    return sorted(path for path in folders if path.suffix != ".tmp")


def _expired(run: Path, retention: RetentionPolicy) -> list[Path]:
    older = _step_folders(run)[: -retention.keep_latest]
    return [path for path in older if not retention.is_permanent(_step_of(path))]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def saved_steps(run: Path) -> list[int]:
    """Return the steps of a run's complete checkpoints in ascending order."""
    return [_step_of(path) for path in _step_folders(run) if read_complete_record(path) is not None]


def open_checkpoint(run: Path, step: int) -> SavedCheckpoint:
    """Return the checkpoint of a step, which is one of `saved_steps`.

    Raises:
        CheckpointError: it is of another format.
    """
    folder = _folder_of(run, step)
    record = read_json(folder / "state.json")
    _require_format(folder, record)
    return SavedCheckpoint(folder, step, record)


def delete_checkpoints_after(run: Path, step: int) -> None:
    """Delete the checkpoints of steps after `step`, for a rollback to it."""
    for path in _step_folders(run):
        if _step_of(path) > step:
            shutil.rmtree(path)


def newest_checkpoint(
    run: Path, identity: RunIdentity | None = None, max_step: int | None = None
) -> SavedCheckpoint | None:
    """Return the newest complete checkpoint of a run, or None if the run has none.

    Args:
        run: the run's folder.
        identity: of this run; a checkpoint of another run is refused. None accepts any.
        max_step: ignore checkpoints of later steps; None ignores none.

    Raises:
        CheckpointError: it is of another format, config or data, or all checkpoints are damaged.
    """
    folders = [path for path in _step_folders(run) if max_step is None or _step_of(path) <= max_step]
    for folder in reversed(folders):
        record = read_complete_record(folder)
        if record is None:
            continue
        _require_format(folder, record)
        if identity is not None:
            _require_same_run(folder, record["identity"], identity)
        return SavedCheckpoint(folder, record["step"], record)
    if folders:
        raise CheckpointError(
            f"{run / 'checkpoints'}: files of {', '.join(f.name for f in folders)} are missing or truncated; expected "
            "a complete checkpoint. Copy it again, or delete the folder to start over."
        )
    return None


_STEPS_HINT = (
    " The steps of a run can change if schedule.min_lr_factor=1 and there is no stage two: else the learning rates of "
    "the finished steps would be others. --init-from continues a run under a new schedule."
)


def differing_fields(saved: RunIdentity, identity: RunIdentity, names: Iterable[str] | None = None) -> tuple[str, str]:
    """Return the fields that differ with the values of both runs; empty if none does.

    >>> differing_fields({"seed": 0, "steps": 8}, {"seed": 1, "steps": 8})
    ('seed=0', 'seed=1')
    """
    all_names = sorted({*saved, *identity}) if names is None else names
    changed = [name for name in all_names if saved.get(name) != identity.get(name)]
    then, now = (", ".join(f"{name}={fields.get(name)!r}" for name in changed) for fields in (saved, identity))
    return then, now


def _require_same_run(folder: Path, saved: RunIdentity, identity: RunIdentity) -> None:
    """Refuse the checkpoint of another config or other data, naming the fields that differ."""
    then, now = differing_fields(saved, identity)
    only_steps = {**saved, "steps": None} == {**identity, "steps": None}
    if only_steps and _may_change_steps(identity):
        return
    if then:
        raise CheckpointError(
            f"{folder} was written by a run with {then}; this run has {now}. Change it back, "
            f"choose another --out, or delete {folder.parent} to start over." + _STEPS_HINT * only_steps
        )


def _may_change_steps(identity: RunIdentity) -> bool:
    """Return whether the finished steps of a run do not depend on how many there are.

    They do not if the learning rate is constant after the warm-up and there is no stage two.
    """
    is_constant = identity.get("schedule.min_lr_factor") == 1.0
    return is_constant and not any(name.startswith("stage_two.") for name in identity)


def _require_format(folder: Path, record: Any) -> None:
    found = record.get("format", 1)
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {found}; expected format {CHECKPOINT_FORMAT}. Finish the run with the "
            f"version of calumma that started it, choose another --out, or delete {folder.parent} to start over."
        )


def read_complete_record(folder: Path) -> Any:
    """Return the content of `state.json`, or None if a file is missing or of another size."""
    try:
        record = read_json(folder / "state.json")
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
    except (OSError, FileError, KeyError, TypeError):
        return None
    return record if sizes == record["files"] else None


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` with a mark in place of each tensor, which goes into `tensors` by its path."""
    if isinstance(value, Tensor):
        assert path not in tensors, path
        tensors[path] = value.detach()
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": path, "shape": list(value.shape), "dtype": dtype}
    prefix = f"{path}." if path else ""
    if isinstance(value, dict):
        # A list of pairs, since JSON turns integer keys into strings.
        return {"dict": [[k, _flatten(v, f"{prefix}{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(entry, f"{prefix}{n}", tensors) for n, entry in enumerate(value)]
    return value


def _unflatten(value: Any, make: Callable[[Any], Any]) -> Any:
    """Return the inverse of `_flatten`, with `make(mark)` in place of each mark."""
    if isinstance(value, list):
        return [_unflatten(entry, make) for entry in value]
    if isinstance(value, dict) and "tensor" in value:
        return make(value)
    if isinstance(value, dict):
        return {key: _unflatten(entry, make) for key, entry in value["dict"]}
    return value


def _meta_tensor(mark: Any) -> Tensor:
    return torch.empty(mark["shape"], dtype=getattr(torch, mark["dtype"]), device="meta")


def _open_shards(folder: Path, files: Iterable[str]) -> dict[str, list[_Shard]]:
    shards: dict[str, list[_Shard]] = {}
    for file in files:
        metadata = read_safetensors_metadata(folder / file).get(_DCP_METADATA)
        info = json.loads(metadata) if metadata else {}
        for name, lazy in open_safetensors(folder / file).items():
            offsets = info[name]["saved_offsets"] if info else [0] * len(lazy.shape)
            shards.setdefault(name, []).append((offsets, lazy))
    return shards


def _merge_shards(meta: Tensor, shards: list[_Shard]) -> LazyTensor:
    def read() -> Tensor:
        full = torch.empty(meta.shape, dtype=meta.dtype)
        for offsets, lazy in shards:
            sizes = zip(offsets, lazy.shape, strict=True)
            full[tuple(slice(start, start + size) for start, size in sizes)] = lazy.read()
        return full

    return LazyTensor(tuple(meta.shape), meta.dtype, read)
