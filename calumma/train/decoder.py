"""A decoder that learns from a stream of rows: what pre-training and fine-tuning share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from calumma.batches.stream import Stream, StreamState
from calumma.checkpoints.run import Checkpoint, load_optimizer, optimizer_tensors
from calumma.model.decoder import Decoder
from calumma.train.config import TrainConfig
from calumma.train.optimizer import make_optimizers, set_rates
from calumma.train.schedule import rate_share
from calumma.train.step import StepRules, optimizer_step


@dataclass
class DecoderLearner:
    """A `Learner` of ids."""

    decoder: Decoder
    stream: Stream
    config: TrainConfig

    weights_at: Callable[[int], Mapping[str, float]]
    """Share of each source at a step: how the stages differ."""

    def __post_init__(self) -> None:
        self.decoder.train()
        self.optimizers = make_optimizers(self.decoder, self.config.optimizer)
        self.rules = StepRules(
            vocabulary=self.stream.vocabulary,
            z_loss=self.config.z_loss,
            max_gradient_norm=self.config.optimizer.max_gradient_norm,
        )

    def step(self, number: int) -> dict[str, float]:
        """Draw the step's batches and learn from them."""
        # Dropout draws from torch's global generator: seeded by the step, a resumed run
        # draws what an undisturbed one would have drawn.
        torch.manual_seed(self.config.seed * 1_000_003 + number)
        started = time.perf_counter()
        self.stream.mix(self.weights_at(number))
        batches = [self.stream.next() for _ in range(self.config.accumulate)]
        waited = time.perf_counter() - started
        share = rate_share(number, self.config.steps, self.config.schedule)
        set_rates(self.optimizers, share)
        report = optimizer_step(self.decoder, self.optimizers, batches, self.rules)
        whole = time.perf_counter() - started
        rate = self.config.optimizer.peak_rate * share
        return {**asdict(report), "rate": rate, "data_wait_share": waited / whole}

    def checkpoint(self, step: int) -> Checkpoint:
        """Weights, optimizer states, and the stream's place."""
        tensors = {f"model.{name}": tensor for name, tensor in self.decoder.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= optimizer_tensors(optimizer, f"optimizer{number}")
        return Checkpoint(step, tensors, {"stream": asdict(self.stream.state)})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of the same config."""
        weights = {
            name.removeprefix("model."): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith("model.")
        }
        self.decoder.load_state_dict(weights)
        for number, optimizer in enumerate(self.optimizers):
            load_optimizer(optimizer, checkpoint.tensors, f"optimizer{number}")
        self.stream.restore(StreamState(**checkpoint.state["stream"]))
