"""Model folders of a run, made of its checkpoints.

    RUN/models/step-00050000/    for each checkpoint that `keep_every` keeps
    RUN/model/                   for the last one

One process reads the checkpoint's files, a tensor at a time and on the CPU, whatever ranks wrote
them; no GPU holds the model whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.model_folder import HF_CONFIG_FILE, in_memory_model, write_model
from calumma.checkpoints.training_checkpoint import (
    RetentionPolicy,
    SavedCheckpoint,
    open_checkpoint,
    saved_steps,
)
from calumma.model.config import DecoderConfig
from calumma.tokens.folder import Tokenizers

Tensors = Mapping[str, LazyTensor]
"""A decoder's, by our names."""


def as_they_are(tensors: Tensors) -> Tensors:
    """All weights learn, and a checkpoint holds nothing beside them."""
    return tensors


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What goes into a run's model folders beside the learned weights."""

    tokenizers: Tokenizers

    merge: Callable[[Tensors], Tensors] = as_they_are
    """Makes a plain decoder's tensors of those in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class HFExporter:
    """Writes the model folders of one run; for the first rank alone."""

    run: Path
    shape: DecoderConfig
    keep: RetentionPolicy
    exports: ExportConfig

    def __call__(self, step: int) -> None:
        """Write that of a step, if it is to stay for good."""
        if self.keep.is_permanent(step):
            self._write(open_checkpoint(self.run, step), self.folder(step))

    def write_missing(self) -> None:
        """Write those that a killed run still owes."""
        for step in saved_steps(self.run):
            if not (self.folder(step) / HF_CONFIG_FILE).is_file():
                self(step)

    def write_last(self) -> Path:
        """Write that of the newest checkpoint, and say where."""
        folder = self.run / "model"
        self._write(open_checkpoint(self.run, saved_steps(self.run)[-1]), folder)
        return folder

    def folder(self, step: int) -> Path:
        """Where a step's model lies."""
        return self.run / "models" / f"step-{step:08d}"

    def _write(self, saved: SavedCheckpoint, folder: Path) -> None:
        tensors = self.exports.merge(saved.load_lazy()["model"])
        write_model(folder, in_memory_model(self.exports.tokenizers, self.shape, tensors))
