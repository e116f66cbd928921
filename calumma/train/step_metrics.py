"""Metrics of one optimizer step, a line of `metrics.jsonl`, and how they leave a GPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one optimizer step; losses are in nats per token in the loss mask."""

    loss: float

    grad_norm: float
    """Norm of the gradient before clipping."""

    lr: float | None = None
    """Learning rate of the step."""

    loss_text: float | None = None
    loss_image: float | None = None

    log_z: float | None = None
    """Mean log of the softmax's denominator Z."""

    max_logit: float | None = None

    output_norm: float | None = None
    """Mean norm of the last block's output."""

    grad_norms: Mapping[str, float] = field(default_factory=dict)
    """Norm by parameter group (embedding, attention, ...); logged as `grad_norm_GROUP`."""

    num_tokens: int | None = None
    """Tokens of the step, padding left out."""

    ideal_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the step's operations take at the peak of all GPUs: `mfu` with the attention of
    full rows, `mfu_documents` with that within documents. Not logged, but their fractions of the
    step are."""

    stage: int = 1
    """Stage of the run; loss spikes are detected within a stage."""

    data_wait_seconds: float | None = None
    """Seconds spent waiting for data; not logged, gives `data_wait_fraction`."""

    peak_memory_bytes: int | None = None

    extra: Mapping[str, float] = field(default_factory=dict)
    """Metrics of one kind of training: losses, rewards, codebook usage, diagnostics."""

    step_skipped: int = 0
    """1 if the gradient was not finite and no weight changed, else 0."""

    def to_dict(self) -> dict[str, float]:
        """Return the metrics by their names in `metrics.jsonl`."""
        fields: dict[str, Any] = dict(vars(self))
        for name in ("grad_norms", "ideal_seconds", "data_wait_seconds", "extra"):
            del fields[name]
        metrics = {name: value for name, value in fields.items() if value is not None}
        grad_norms = {f"grad_norm_{group}": norm for group, norm in self.grad_norms.items()}
        return {**metrics, **grad_norms, **self.extra}


class DeferredNumbers:
    """Numbers that a device may still be computing.

    They are copied to pinned memory on the stream that computes them, so `read` waits for nothing
    that was launched later.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy of a tensor [N]."""
        self._values = tensor.to("cpu", non_blocking=tensor.is_cuda)
        self._copied: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Wait for the numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


@dataclass(frozen=True)
class DeferredMetrics:
    """Metrics of a step that was launched, and may still run on a GPU."""

    read: Callable[[], StepMetrics]
    """Waits for the step and returns its metrics."""
