"""Checkpoints of a run: what it takes to go on exactly where it stopped.

    RUN/checkpoints/step-00000100/tensors.safetensors   weights, optimizer states, generators
    RUN/checkpoints/step-00000100/state.json            step, data position, fingerprint

A checkpoint is written under another name and renamed; the newest whole one is taken up. Nothing
in it is a pickle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then drop all but the newest `KEPT`."""
    folder = run / "checkpoints"
    with replacing(folder / f"step-{checkpoint.step:08d}") as temporary:
        temporary.mkdir()
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, temporary / "tensors.safetensors")
        write_json(temporary / "state.json", {"step": checkpoint.step, **checkpoint.state})
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
    state = read_json(saved[-1] / "state.json")
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{saved[-1]} was written by a run of another config or other data "
            f"({state['fingerprint']}, this run is {fingerprint}). Choose another --out, or "
            f"delete {run / 'checkpoints'} to begin anew."
        )
    return Checkpoint(state["step"], load_file(saved[-1] / "tensors.safetensors"), state)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    return {
        f"{prefix}.{number}.{key}": value
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str
) -> None:
    """Put back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            number, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
