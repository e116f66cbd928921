"""A decoder that learns from a stream of rows: what pre-training and fine-tuning share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from calumma.batches.stream import Stream, StreamState
from calumma.model.decoder import Decoder
from calumma.train.compute import computed_in, prepare
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
        prepare(self.decoder, self.config.compute)
        self.optimizers = make_optimizers(self.decoder, self.config.optimizer)
        self.rules = StepRules(
            vocabulary=self.stream.vocabulary,
            z_loss=self.config.z_loss,
            max_gradient_norm=self.config.optimizer.max_gradient_norm,
            computed_in=computed_in(self.config.compute, self.decoder.embedding.weight.device),
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

    def state(self) -> dict[str, Any]:
        """Weights, optimizer states, and the stream's place."""
        return {
            "model": self.decoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stream": asdict(self.stream.state),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state of the same config."""
        self.decoder.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stream.restore(StreamState(**state["stream"]))
