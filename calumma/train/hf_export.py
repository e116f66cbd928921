"""Export of a run's checkpoints as Hugging Face model folders.

    RUN/models/step-00050000/    of each checkpoint that `checkpoint.keep_every` keeps
    RUN/model/                   of the last one

One process reads the files of a checkpoint, a tensor at a time and on the CPU, whatever ranks wrote
them; no GPU holds the full model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.model_folder import HF_CONFIG_FILE, in_memory_model, write_model
from calumma.checkpoints.sampling_params import SamplingOptions
from calumma.checkpoints.training_checkpoint import RetentionPolicy, SavedCheckpoint, open_checkpoint, saved_steps
from calumma.model.config import DecoderConfig
from calumma.tokens.folder import Tokenizers

MergeFunction = Callable[[Mapping[str, LazyTensor]], Mapping[str, LazyTensor]]
"""Maps the tensors of a checkpoint to those of a plain decoder, such as by merging adapters."""


@dataclass(frozen=True, kw_only=True)
class HFExporter:
    """Writes the model folders of one run; for rank 0 only."""

    run: Path
    shape: DecoderConfig
    retention: RetentionPolicy
    tokenizers: Tokenizers
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    merge: MergeFunction | None = None

    def export_if_permanent(self, step: int) -> None:
        """Write the model folder of a checkpoint that is kept for good."""
        if self.retention.is_permanent(step):
            self._write(open_checkpoint(self.run, step), self.folder(step))

    def export_missing(self) -> None:
        """Write the model folders that a killed run did not."""
        for step in saved_steps(self.run):
            if not (self.folder(step) / HF_CONFIG_FILE).is_file():
                self.export_if_permanent(step)

    def export_last(self) -> Path:
        """Write the model folder of the newest checkpoint and return its path."""
        folder = self.run / "model"
        self._write(open_checkpoint(self.run, saved_steps(self.run)[-1]), folder)
        return folder

    def folder(self, step: int) -> Path:
        """Return the path of a step's model folder."""
        return self.run / "models" / f"step-{step:08d}"

    def _write(self, saved: SavedCheckpoint, folder: Path) -> None:
        tensors: Mapping[str, LazyTensor] = saved.load_lazy()["model"]
        if self.merge is not None:
            tensors = self.merge(tensors)
        write_model(folder, in_memory_model(self.tokenizers, self.shape, tensors, self.sampling))
