"""Checkpoints of a run: what it takes to go on exactly where it stopped.

    RUN/checkpoints/step-00000100/tensors.safetensors   every tensor of the state, numbered
    RUN/checkpoints/step-00000100/state.json            the state, with a number for each tensor

A checkpoint is written under another name and renamed; the newest whole one is taken up. Nothing
in it is a pickle.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from calumma.errors import CheckpointError
from calumma.files import read_json, replacing, write_json

KEPT = 2
"""Newest checkpoints that stay; the older of them is there should the disk break the newer."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    step: int

    state: Any
    """Tensors, numbers, strings, None, and lists, tuples and dicts of them, nested at will."""


def save_checkpoint(run: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Write a checkpoint, then drop all but the newest `KEPT`."""
    with replacing(run / "checkpoints" / f"step-{checkpoint.step:08d}") as temporary:
        temporary.mkdir()
        tensors: dict[str, Tensor] = {}
        state = _take_out(checkpoint.state, tensors)
        save_file(tensors, temporary / "tensors.safetensors")
        record = {"step": checkpoint.step, "fingerprint": fingerprint, "state": state}
        write_json(temporary / "state.json", record)
    for old in _saved(run)[:-KEPT]:
        shutil.rmtree(old)


def _saved(run: Path) -> list[Path]:
    folders = (run / "checkpoints").glob("step-*")
    return sorted(path for path in folders if path.suffix != ".tmp")


def newest_checkpoint(run: Path, fingerprint: str) -> Checkpoint | None:
    """The newest checkpoint of a run, or None where it has none.

    Args:
        run: the run's folder.
        fingerprint: of everything that decides the run's course, as the run saved it.

    Raises:
        CheckpointError: it was written by a run of another config or other data.
    """
    saved = _saved(run)
    if not saved:
        return None
    record = read_json(saved[-1] / "state.json")
    if record["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{saved[-1]} was written by a run of another config or other data "
            f"({record['fingerprint']}, this run is {fingerprint}). Choose another --out, or "
            f"delete {run / 'checkpoints'} to begin anew."
        )
    tensors = load_file(saved[-1] / "tensors.safetensors")
    return Checkpoint(record["step"], _put_back(record["state"], tensors))


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with a numbered mark for each tensor, which goes into `tensors`."""
    if isinstance(value, Tensor):
        number = f"{len(tensors):06d}"
        tensors[number] = value.detach().cpu().contiguous()
        return {"tensor": number}
    if isinstance(value, dict):
        # A list of pairs: JSON would turn the optimizer's whole-number keys into strings.
        return {"dict": [[key, _take_out(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_take_out(entry, tensors) for entry in value]
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_back(entry, tensors) for entry in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _put_back(entry, tensors) for key, entry in value["dict"]}
    return value
